"""One sequence that the engine works on: its prompt, what was generated, and whoever waits for that."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from engines.double import kv, pool
from engines.double.kv import Tape
from engines.double.tokens import IM_END


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request may say about its answer. Temperature and the like change nothing on the double."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_ids: frozenset[int] = frozenset()
    forced: tuple[int, ...] | None = None
    """the answer is these tokens (structured output)"""


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one sequence in the engine. `fresh` holds the tokens nobody has taken yet."""

    id: str
    prompt: list[int]
    sampling: Sampling
    tape: Tape
    index: int = 0
    salt: str | None = None
    lora: str | None = None
    """the adapter; None: the model as it is"""
    params: dict[str, Any] | None = None
    """kv_transfer_params, changed by the engine as it uses them"""
    tokens: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    external_tokens: int = 0
    created_tokens: int = 0
    preempted: bool = False
    answer_params: dict[str, Any] | None = None
    finish: str | None = None
    stop_reason: int | None = None
    fresh: list[int] = field(default_factory=list)
    arrived_s: float = 0.0
    last_token_s: float = 0.0
    _waiter: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.extend_names()

    @property
    def outputs(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.prompt)

    def extend_names(self) -> None:
        """Name the blocks that the tokens fill by now."""
        size = self.tape.size
        for start in range(len(self.names) * size, len(self.tokens) - size + 1, size):
            parent = self.names[-1] if self.names else pool.root(self.salt, self.lora)
            self.names.append(pool.chain(parent, self.tokens[start : start + size]))

    def found(self, local: int, external: int) -> None:
        """So many tokens of it are cached here, and so many come from another engine."""
        full = len(self.tokens) // self.tape.size * self.tape.size
        self.cached_tokens, self.external_tokens = local + external, external
        self.created_tokens = max(0, full - self.cached_tokens)

    def sample(self, eos_one_in: int, max_model_len: int) -> tuple[str, int | None] | None:
        """Generate a token. Returns the finish reason, and the token that stopped it if the request named that; None
        while there is more to come."""
        sampling, at = self.sampling, self.outputs
        if sampling.forced is not None:
            token = sampling.forced[at] if at < len(sampling.forced) else IM_END
        else:
            ends = 0 if sampling.ignore_eos or at < sampling.min_tokens else eos_one_in
            token = kv.choose(self.tape.state, self.tokens[-1], self.index, ends)
        self.tokens.append(token)
        self.fresh.append(token)
        self._wake()
        if token == IM_END and not sampling.ignore_eos:
            return "stop", None
        if token in sampling.stop_ids and at + 1 >= sampling.min_tokens:
            return "stop", token
        if at + 1 >= sampling.max_tokens or len(self.tokens) >= max_model_len:
            return "length", None
        return None

    def end(self, reason: str, stop_reason: int | None = None) -> None:
        self.finish = reason
        self.stop_reason = stop_reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None

    async def next(self) -> list[int]:
        """The tokens generated since the last call; waits for one or for the end. One caller at a time."""
        if not self.fresh and self.finish is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        fresh, self.fresh = self.fresh, []
        return fresh
