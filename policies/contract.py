"""The contract between Baton and a routing policy, version 4.

A policy is a pure function over frozen data: it gets one request and a snapshot of the fleet *for this request*, and
returns a `Placement`. It does no I/O, keeps no clock, and imports nothing of Baton beyond `policies`; so one file runs
in the gateway, in the simulator, in a test and on an operator's laptop.

    class Shortest:
        def place(self, request: Request, fleet: Fleet) -> Placement:
            decode = min(fleet.decoders, key=lambda engine: engine.decode_requests)
            return Placement(decode=decode.name, reason="fewest decodes")

Later versions only add fields with defaults.
"""

import math
from collections.abc import Mapping
from typing import Literal, Protocol, get_args, runtime_checkable

import msgspec

from policies import formulas

VERSION = 4
"""1: loads, cached tokens, links. 2: fitted speeds, booked seconds, KV capacity, objectives. 3: expectations. 4: when
the prefill at the head of a queue began."""

Role = Literal["prefill", "decode", "both"]
Saturated = Literal["", "queues", "memory"]
SATURATED: tuple[Saturated, ...] = get_args(Saturated)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy may know of a request. No text."""

    model: str
    prompt_tokens: int
    """Tokens in; estimated from the body's size where ids are not known."""
    block_size: int = 1
    """Tokens per KV block."""
    session: str = ""
    """The conversation it belongs to, as the client named it; empty if it did not."""
    prefix: int = 0
    """A number that prompts with the same first block share; 0 if unknown."""
    output_tokens: int | None = None
    """The client's limit on tokens out, if it set one."""
    whole: str = ""
    """Why this request cannot be split over two engines; empty if it can."""
    priority: int = 0
    """0 is served first."""
    tenant: str = ""
    ttft_slo_s: float | None = None
    """By when its first token is wanted, seconds after now; None: as soon as may be."""
    itl_slo_s: float | None = None
    """The pause between tokens that is still good."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast an engine is: fitted from what was seen of it, or what is assumed until then (a large model on four
    recent GPUs).

    A prefill of n tokens after c cached ones takes `token_s * n + context_s * n * (c + n / 2)`; a decode step of b
    sequences that hold k tokens of KV `step_s + sequence_s * b + kv_s * k`. A step may do both.
    """

    token_s: float = 1e-5
    context_s: float = 2.3e-10
    step_s: float = 6e-3
    sequence_s: float = 8e-5
    kv_s: float = 6e-9
    mix: float = 1.2
    """Prefilled tokens take this much longer in a step that decodes as well."""
    leg_s: float = 0.1
    """What a remote prefill costs beside queue, computation and transfer: a second request, the set-up of a pull."""
    join_s: float = 3e-3
    """What a request that was prefilled elsewhere adds to the decode step with which it joins."""

    def prefill_s(self, new: float, cached: float = 0.0) -> float:
        """Seconds to prefill `new` tokens after `cached` ones."""
        return formulas.prefill_s(self.token_s, self.context_s, new, cached)

    def decode_s(self, batch: float, kv_tokens: float) -> float:
        """Seconds of a step that gives `batch` sequences a token each."""
        return formulas.decode_s(self.step_s, self.sequence_s, self.kv_s, batch, kv_tokens)


ASSUMED = Speed()


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
    """Prompt tokens of the requests that it decodes: the KV that they hold, without what was generated. Those that are
    still prefilled elsewhere for it are in both counts."""
    coming_requests: int = 0
    """Of the decode requests, those that are still prefilled elsewhere."""
    coming_tokens: int = 0
    """Prompt tokens of those."""
    cached_tokens: int = 0
    """Leading tokens of this request's prompt that the engine does not have to compute: what it holds in its first
    tier, or soon will."""
    offloaded_tokens: int = 0
    """The same on slower tiers (host memory, disk)."""
    session: bool = False
    """True for the engine that decoded the session's last request."""
    prefill_s: float = 0.0
    """Seconds of prefill that are booked there and not finished, as its speed foretells."""
    prefill_since_s: float = math.inf
    """When the one began that it computes now, in the time of the snapshot's `now_s`; infinite if unknown."""
    kv_tokens: int = 0
    """Tokens of prompts whose KV fits into it, as far as they are seen to share it; 0 if unknown."""
    speed: Speed = ASSUMED
    cost: float = 1.0
    """What a second of it costs, against the others."""

    def waits_s(self, now_s: float) -> float:
        """Seconds of booked prefill that are still to be done."""
        return formulas.waits_s(self.prefill_s, self.prefill_requests, self.prefill_since_s, now_s)

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
    now_s: float = 0.0
    """When the snapshot was made; only differences mean something."""
    kv_bytes_per_token: int = 0
    """Of the model; 0 if unknown."""
    arrivals_per_s: float = 0.0
    """Requests to the model, over the last half minute."""
    prefill_load: float = 0.0
    """Share of the time in which the prefill engines had work, over the last half minute; may exceed 1 in a burst."""
    itl_price: float = 1.0
    """What delaying a running decode by a second is worth against a second of TTFT: rises while pauses between tokens
    miss their objective, falls while first tokens miss theirs."""

    @property
    def prefillers(self) -> tuple[Engine, ...]:
        """Engines for a remote prefill."""
        return tuple([engine for engine in self.engines if engine.role != "decode"])

    @property
    def decoders(self) -> tuple[Engine, ...]:
        """Engines that can answer; never empty when a policy is asked."""
        return tuple([engine for engine in self.engines if engine.role != "prefill"])

    @property
    def collocated(self) -> bool:
        """True if every engine does both: then nothing is prefilled elsewhere."""
        return all(engine.role == "both" for engine in self.engines)

    def link(self, a: str, b: str) -> Link | None:
        """The link between two hosts, whichever way it was written; None if unknown."""
        return self.links.get((a, b)) or self.links.get((b, a))

    def transfer_s(self, a: str, b: str, tokens: float) -> float:
        """Seconds to move the KV of so many tokens from host `a` to host `b`; 0 if the link is unknown."""
        link = self.link(a, b) if self.links else None
        if link is None:
            return 0.0
        return link.latency_us * 1e-6 + tokens * self.kv_bytes_per_token * 8e-9 / link.gbps


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
    ttft_s: float | None = None
    """When the policy expects the first token, seconds after now; None if it does not say."""
    saturated: Saturated = ""
    """Why no engine can serve the request as it should be: `queues` (its first token will be late wherever it goes) or
    `memory` (no decode engine has room for it). Empty if one can. The placement is the best there is all the same:
    whether to wait or to refuse is for admission to say."""


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
    if placement.saturated not in SATURATED:
        raise Nonsense(
            f"saturated is {placement.saturated!r}: use one of {', '.join(SATURATED[1:])}, or leave it empty"
        )
    if placement.prefill is None:
        return placement
    if request.whole:
        raise Nonsense(f"split a request that must stay whole ({request.whole})")
    if placement.prefill == placement.decode:
        raise Nonsense(f"prefill and decode are both {placement.decode!r}: use prefill=None")
    if placement.prefill not in [engine.name for engine in fleet.engines if engine.role != "decode"]:
        raise Nonsense(f"prefill engine {placement.prefill!r} is not one of the prefillers")
    return placement
