"""Only on the PYTHONPATH of engines without a GPU: lets NIXL's progress thread sleep for a millisecond between polls.

NIXL's Python agent sets `pthrDelay = 0`, so the thread polls without a pause. On GPU hosts that is the fastest; on few
shared cores it takes one of them from the engines (1.0 CPU seconds in 5 s of idling, 0.27 with this).
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PROGRESS_DELAY_US = 1000
TARGET = "nixl_cu12._api"


class _Patched(importlib.abc.Loader):
    """Loads NIXL's API as it is, then gives each agent's configuration the delay."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        bindings: Any = module.nixlBind
        make_agent = bindings.nixlAgent

        def agent(name: str, config: Any) -> Any:
            config.pthrDelay = PROGRESS_DELAY_US
            return make_agent(name, config)

        bindings.nixlAgent = agent


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patched(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
