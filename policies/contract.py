"""The contract between Baton and a routing policy, version 1.

A policy is a pure function over frozen data: it gets one request and a snapshot of the fleet *for this request*, and
returns a `Placement`. It does no I/O, keeps no clock, and imports nothing of Baton beyond `policies`; so one file runs
in the gateway, in the simulator, in a test and on an operator's laptop.

    class Shortest:
        def place(self, request: Request, fleet: Fleet) -> Placement:
            decode = best(fleet.decoders, lambda engine: -engine.decode_requests)
            return Placement(decode=decode.name, reason="fewest decodes")

Later versions only add fields with defaults.
"""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import msgspec

VERSION = 1

Role = Literal["prefill", "decode", "both"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy may know of a request. No text."""

    model: str
    prompt_tokens: int
    """Tokens in; estimated from the body's size where ids are not known."""
    block_size: int = 1
    """Tokens per KV block."""
    session: str = ""
    """The conversation it belongs to, as the client named it; empty if it did not."""
    output_tokens: int | None = None
    """The client's limit on tokens out, if it set one."""
    whole: str = ""
    """Why this request cannot be split over two engines; empty if it can."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """One healthy engine as it stands now. Load counts what all gateways have in flight on it."""

    name: str
    role: Role
    host: str = "localhost"
    prefill_requests: int = 0
    prefill_tokens: int = 0
    """Uncached prompt tokens in flight that the engine still has to prefill."""
    decode_requests: int = 0
    decode_tokens: int = 0
    """Prompt tokens of the requests being decoded: the KV that they hold, without what was generated."""
    cached_tokens: int = 0
    """Leading tokens of this request's prompt that the engine does not have to compute: what it holds in its first
    tier, or soon will."""
    offloaded_tokens: int = 0
    """The same on slower tiers (host memory, disk)."""
    session: bool = False
    """True for the engine that decoded the session's last request."""

    @property
    def prefills(self) -> bool:
        return self.role != "decode"

    @property
    def decodes(self) -> bool:
        return self.role != "prefill"


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The network between two hosts."""

    gbps: float
    latency_us: float = 0.0


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The engines that may serve the request now, and the links between their hosts."""

    engines: tuple[Engine, ...]
    links: Mapping[tuple[str, str], Link] = {}

    @property
    def prefillers(self) -> tuple[Engine, ...]:
        """Engines for a remote prefill."""
        return tuple([engine for engine in self.engines if engine.role != "decode"])

    @property
    def decoders(self) -> tuple[Engine, ...]:
        """Engines that can answer; never empty when a policy is asked."""
        return tuple([engine for engine in self.engines if engine.role != "prefill"])

    def link(self, a: str, b: str) -> Link | None:
        """The link between two hosts, whichever way it was written; None if unknown."""
        return self.links.get((a, b)) or self.links.get((b, a))


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes, and why."""

    decode: str
    """The engine that answers."""
    prefill: str | None = None
    """The engine that prefills first; None: the decode engine does it itself. Never the same as `decode`."""
    reason: str
    """For a person to read: short, without values that differ from request to request (it is a metric's label)."""
    scores: Mapping[str, float] = {}
    """What each considered engine scored; more is better."""


@runtime_checkable
class Policy(Protocol):
    """Chooses the engines of one request."""

    def place(self, request: Request, fleet: Fleet) -> Placement:
        """Place one request. `fleet.decoders` is not empty. Must return within its time budget (1 ms)."""
        ...


class Nonsense(ValueError):
    """A placement that cannot be carried out."""


def check(placement: object, request: Request, fleet: Fleet) -> Placement:
    """Return the placement if it can be carried out on `fleet`. Raises `Nonsense`, which says why not."""
    if not isinstance(placement, Placement):
        raise Nonsense(f"returned {type(placement).__name__}, not a Placement")
    if placement.decode not in [engine.name for engine in fleet.engines if engine.role != "prefill"]:
        raise Nonsense(f"decode engine {placement.decode!r} is not one of the decoders")
    if placement.prefill is None:
        return placement
    if request.whole:
        raise Nonsense(f"split a request that must stay whole ({request.whole})")
    if placement.prefill == placement.decode:
        raise Nonsense(f"prefill and decode are both {placement.decode!r}: use prefill=None")
    if placement.prefill not in [engine.name for engine in fleet.engines if engine.role != "decode"]:
        raise Nonsense(f"prefill engine {placement.prefill!r} is not one of the prefillers")
    return placement
