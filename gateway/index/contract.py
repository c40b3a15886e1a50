"""The contract of the prefix index.

One `Index` is one namespace: engines of one model with one block size. A block is named by its chained hash (8 bytes,
`gateway.prompt.hashes`), packed hashes are those bytes one after the other, from the first block of the prompt on.
LoRA adapter and cache salt are in the chain's seed, so their blocks never meet.

What engines hold is written through a `Writer`, one for each holder, and `match` is exact after every `apply`: holes,
re-stores and duplicates included. `expect` and `learn` are guesses that end by themselves; they are reported apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from gateway.index.inspect import Run, Stats

GPU = "gpu"


class Holder(NamedTuple):
    """One KV cache: an engine, by its URL (which all gateways share), a data-parallel rank of it, a tier of that."""

    engine: str
    rank: int = 0
    tier: str = GPU
    """The event's `medium` in lower case: gpu, cpu, ..."""


class Stored(NamedTuple):
    """A run of blocks that are now held, each the parent of the next."""

    parent: bytes | None
    """Hash of the block before the first; None if that is the first block of a prompt."""
    hashes: bytes
    """Packed; at least one."""


class Removed(NamedTuple):
    """Blocks that are no longer held."""

    hashes: bytes
    """Packed, in any order."""


Change = Stored | Removed


class InFlight(NamedTuple):
    """What one gateway has in flight on one engine."""

    prefill_requests: int = 0
    prefill_tokens: int = 0
    decode_requests: int = 0
    decode_tokens: int = 0
    prefill_us: int = 0
    """Microseconds of prefill that are booked."""
    coming_requests: int = 0
    """Of the decode requests, those that are still prefilled elsewhere."""
    coming_tokens: int = 0


class Match(msgspec.Struct, frozen=True):
    """What the index knows of one prompt. Whoever holds nothing is absent; counts are leading blocks."""

    held: Mapping[Holder, int] = {}
    """Exact, from the engines' events."""
    expected: Mapping[str, int] = {}
    """Engine URL -> blocks that placements of the last seconds will create; rounded down to a coarse grid."""
    learned: Mapping[str, int] = {}
    """The same with a long life, for engines without events."""
    others: Mapping[str, InFlight] = {}
    """Engine URL -> load of all other live gateways together."""
    session: str = ""
    """URL of the engine that the session was bound to."""


NOTHING = Match()


class Unavailable(Exception):
    """The index did not answer in time; the request is routed on load alone."""


class Lost(Exception):
    """What a writer wrote is gone or another took its place: open a new one and store everything again."""


class UnknownParent(Exception):
    """A store names a parent that its holder does not hold: events were lost."""


class Writer(Protocol):
    """The blocks of one incarnation of a holder. One task at a time writes through it."""

    holder: Holder

    async def apply(self, changes: Sequence[Change]) -> None:
        """Apply in order. Removing what is not held is not an error; with no changes it only asks whether all is well.

        Raises `UnknownParent` (nothing of that change and what follows is applied), `Lost`, `Unavailable` (the same
        call may be repeated).
        """
        ...

    async def close(self) -> None:
        """Forget the holder's blocks. O(1) for who waits."""
        ...


class Index(Protocol):
    """The prefix index of one namespace."""

    async def match(self, hashes: bytes, session: bytes = b"") -> Match:
        """Look one prompt up; one round trip. Raises `Unavailable`."""
        ...

    async def open(self, holder: Holder) -> Writer:
        """A new, empty incarnation of a holder; whatever an earlier one held is forgotten. Raises `Unavailable`."""
        ...

    async def forget(self, holder: Holder) -> None:
        """Forget what a holder holds, whoever wrote it."""
        ...

    def expect(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        """These engines will hold this prompt soon; seen by all gateways at once, for `ttl_s`.

        Nobody waits for it; a guess that is lost costs nothing but itself.
        """
        ...

    def learn(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        """The same for engines whose events are off: the only thing that is known of them."""
        ...

    def bind(self, hashes: bytes, session: bytes, engine: str, ttl_s: float) -> None:
        """The session's next prompts (with the same first block) would do well on this engine."""
        ...

    def know(self, names: Sequence[str]) -> None:
        """All names (engines' URLs, and those under which guesses are kept) that other gateways may speak of from now
        on; what was known before is forgotten."""
        ...

    def publish(self, loads: Callable[[], Mapping[str, InFlight]]) -> None:
        """`loads` says what this gateway has in flight, by engine URL: it is asked when others should know."""
        ...

    def beat(self) -> None:
        """Tell the other gateways, if there is news; what is not told again is forgotten after some seconds."""
        ...

    async def stats(self) -> Stats:
        """How large the index is; reads all of it."""
        ...

    async def runs(self) -> list[Run]:
        """Every run of blocks, those that take most room first; reads all of it."""
        ...

    async def sweep(self) -> int:
        """Take away what forgotten incarnations left behind; returns how many entries that were."""
        ...

    async def close(self) -> None: ...
