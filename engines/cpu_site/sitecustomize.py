"""Only on the PYTHONPATH of engines without a GPU: settings that no option reaches, for few shared cores.

- NIXL's Python agent sets `pthrDelay = 0`, so its progress thread polls without a pause. On GPU hosts that is the
  fastest; here it takes a core from the engines (1.0 CPU seconds in 5 s of idling, 0.27 with a millisecond's sleep).
- vLLM's engine core and worker spin for a second after each message, and on few cores take them from those who would
  answer; the message that wakes a sleeper may get lost, which costs up to 5 s. Together a KV pull of 20 ms took 10 to
  30 s now and then, and once an engine gave up. Here they sleep at once and look every 20 ms: 60 prefills and pulls in
  7 s instead of 35 to 110 s (vllm 0.32, `distributed/device_communicators/shm_broadcast.py`, two cores).
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

PROGRESS_DELAY_US = 1000
RECHECK_MS = 20


def rest(nixl: Any) -> None:
    """Give each agent's configuration the delay."""
    bindings = nixl.nixlBind
    make_agent = bindings.nixlAgent

    def agent(name: str, config: Any) -> Any:
        config.pthrDelay = PROGRESS_DELAY_US
        return make_agent(name, config)

    bindings.nixlAgent = agent


def sleep(queues: Any) -> None:
    """Make readers of a message queue sleep at once, and look by themselves now and then."""
    queues.SHM_READER_RECHECK_INTERVAL_MS = RECHECK_MS
    queues.SpinCondition.__init__.__defaults__ = (0.0,)  # busy_loop_s, its only default


CHANGES: dict[str, Callable[[Any], None]] = {
    "nixl_cu12._api": rest,
    "vllm.distributed.device_communicators.shm_broadcast": sleep,
}
"""Modules, and what is done to each once it is loaded."""


class _Changed(importlib.abc.Loader):
    """Loads a module as it is, then changes it."""

    def __init__(self, real: importlib.abc.Loader, change: Callable[[Any], None]) -> None:
        self._real = real
        self._change = change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        self._change(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Changed(spec.loader, CHANGES[name])
        return spec


sys.meta_path.insert(0, _Finder())
