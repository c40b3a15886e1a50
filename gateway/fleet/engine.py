"""One engine as the gateway sees it: where it is, whether it answers, what we have in flight on it."""

from enum import StrEnum
from typing import Protocol, Self

import policies.contract as contract
from engines.fleet import LEASE_S, Role
from gateway.fleet.pace import Pace
from gateway.fleet.wanted import Wanted
from gateway.index.contract import InFlight
from gateway.wire.pool import Limits, Pool

_NO_LOAD = InFlight()


class State(StrEnum):
    """Whether requests are sent to an engine."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Sight(Protocol):
    """What is known of one request: who holds the beginning of its prompt, and what other gateways have in flight."""

    bound: str
    """URL of the engine that its session was decoded on last."""

    def others(self, url: str) -> InFlight | None:
        """What all other gateways have in flight there."""
        ...

    def of(self, url: str) -> tuple[int, int, InFlight | None]:
        """Tokens cached there, tokens on a lower tier, and what other gateways have in flight."""
        ...


class Engine:
    """Live state of one engine. `why` says in words why it is not up. Its fleet changes what others only read."""

    def __init__(
        self,
        name: str,
        url: str,
        role: Role,
        model: str = "",
        host: str = "localhost",
        lease_s: float = LEASE_S,
        limits: Limits | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.wanted = Wanted(name, url, role, model, host, lease_s)
        self.name = name
        self.url = url
        self.role = role
        self.host = host
        self.lease_s = lease_s
        self.draining = False
        """Nothing new goes there, because somebody wants it so."""
        self.offers: contract.Role | None = None
        """As what policies see it now; None: not at all."""
        self.pool = Pool(url, limits=limits or Limits())
        self.state = State.UNKNOWN
        self.why = "not checked yet"
        self.model = model
        self.served: dict[str, bytes] = {}
        """Models that the engine says it serves: id -> its entry in `/v1/models`, as JSON."""
        self.adapters: frozenset[str] = frozenset()
        """Those of them that are LoRA adapters of `model`."""
        self.started_s = 0.0
        """When its process started (Unix time); 0 while unknown."""
        self.enrolled = False
        """Whether this incarnation has been asked all that the gateway wants to know of it."""
        self.renders = False
        """Whether it renders prompts to token ids for others."""
        self.takes_ids = False
        """Whether it takes token ids in place of messages; found out by a probe."""
        self.pace = pace or Pace()
        self.kv_tokens = 0
        """Tokens of KV that fit into it, as it says; 0 while unknown."""
        self._others = _NO_LOAD
        self.prefill_us = 0
        self.coming_requests = 0
        self.coming_tokens = 0
        self.prefill_requests = 0
        self.prefill_tokens = 0
        self.decode_requests = 0
        self.decode_tokens = 0

    @classmethod
    def of(cls, wanted: Wanted, limits: Limits) -> Self:
        """A new engine, as somebody wants it."""
        w = wanted
        made = cls(w.name, w.url, w.role, w.model, w.host, w.lease_s, limits, Pace(w.speed))
        made.adopt(w)
        return made

    def adopt(self, wanted: Wanted) -> None:
        """The same process is wanted otherwise: in another role, on another host, ..."""
        self.wanted = wanted
        self.role, self.host, self.lease_s = wanted.role, wanted.host, wanted.lease_s
        self.pace.prior = wanted.speed
        self.draining = wanted.drain

    @property
    def idle(self) -> bool:
        """Whether this gateway has nothing in flight on it."""
        return not (self.prefill_requests or self.decode_requests)

    def serves(self, model: str) -> bool:
        return model == self.model or model in self.served

    @property
    def incarnation(self) -> str:
        """This run of it, by a name that all gateways share: a restarted engine holds nothing of what it held."""
        return f"{self.url}#{self.started_s:.0f}"

    @property
    def in_flight(self) -> InFlight:
        """What this gateway has in flight on it."""
        return InFlight(
            self.prefill_requests,
            self.prefill_tokens,
            self.decode_requests,
            self.decode_tokens,
            self.prefill_us,
            self.coming_requests,
            self.coming_tokens,
        )

    @property
    def booked_s(self) -> float:
        """Prefill that is booked, by all gateways as far as they were heard when it was looked at last; seconds."""
        return (self.prefill_us + self._others.prefill_us) * 1e-6

    @property
    def decoding_tokens(self) -> int:
        """Prompt tokens of those requests."""
        others = self._others
        return self.decode_tokens - self.coming_tokens + others.decode_tokens - others.coming_tokens

    @property
    def decoding(self) -> int:
        """Requests being decoded, by all gateways."""
        others = self._others
        return self.decode_requests - self.coming_requests + others.decode_requests - others.coming_requests

    def view(self, sight: Sight, role: contract.Role) -> contract.Engine:
        """What a policy sees when it places the request of `sight`."""
        url = self.url
        cached, offloaded, others = sight.of(url)
        if others is None:
            others = _NO_LOAD
        self._others = others
        pace = self.pace
        pace.rest()
        return contract.Engine(
            name=self.name,
            role=role,
            host=self.host,
            prefill_requests=self.prefill_requests + others.prefill_requests,
            prefill_tokens=self.prefill_tokens + others.prefill_tokens,
            decode_requests=self.decode_requests + others.decode_requests,
            decode_tokens=self.decode_tokens + others.decode_tokens,
            coming_requests=self.coming_requests + others.coming_requests,
            coming_tokens=self.coming_tokens + others.coming_tokens,
            cached_tokens=cached,
            offloaded_tokens=offloaded,
            session=sight.bound == url,
            prefill_s=(self.prefill_us + others.prefill_us) * 1e-6 * pace.lateness,
            kv_tokens=self.kv_tokens,
            speed=pace.speed,
        )

    def __repr__(self) -> str:
        busy = f"{self.prefill_requests} prefilling, {self.decode_requests} decoding"
        return f"<Engine {self.name} {self.role} {self.state}: {busy}>"
