"""One engine as the gateway sees it: where it is, whether it answers, what we have in flight on it."""

import asyncio
from enum import StrEnum
from typing import Literal, Protocol, Self

import policies.contract as contract
from engines.fleet import LEASE_S, Role
from gateway.fleet.backlog import Backlog
from gateway.fleet.breaker import NORMAL, Breaker, Phase, Rules
from gateway.fleet.leftover import Leftover
from gateway.fleet.pace import Pace
from gateway.fleet.sharing import Sharing
from gateway.fleet.wanted import Wanted, rank_of
from gateway.index.contract import InFlight
from gateway.wire.pool import Limits, Pool

_NO_LOAD = InFlight()

Leg = Literal["prefill", "decode"]
LEGS: dict[contract.Role, tuple[Leg, ...]] = {
    "prefill": ("prefill",),
    "decode": ("decode",),
    "both": ("prefill", "decode"),
}
"""What an engine is used for; a decode engine that prefills by itself does so as part of its decode leg."""


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
        rules: Rules = NORMAL,
    ) -> None:
        self.wanted = Wanted(name, url, role, model, host, lease_s)
        self.name = name
        self.url = url
        self.rank = rank_of(url)
        """Its data-parallel rank, where each is an engine of its own; they share a process and its port."""
        self.headers = [] if self.rank is None else [(b"x-data-parallel-rank", b"%d" % self.rank)]
        """That every request there carries."""
        self.role = role
        self.host = host
        self.lease_s = lease_s
        self.cost = 1.0
        """What a second of it costs, against the others."""
        self.draining = False
        """Nothing new goes there, because somebody wants it so."""
        self.offers: contract.Role | None = None
        """As what policies see it now; None: not at all."""
        self.breakers: dict[Leg, Breaker] = {"prefill": Breaker(rules), "decode": Breaker(rules)}
        self.tried = False
        """Whether single requests are let through to see if it works again."""
        self.ejections: dict[Leg, int] = {}
        """How often it was ejected from a leg."""
        self.spared = 0
        """How often it was not, because too many were out already."""
        self._floor: dict[Leg, int] = {}
        self.heard_s = 0.0
        """When a leg there went well last (monotonic)."""
        self.kv_usage = 0.0
        """Share of its KV blocks in use, as it says."""
        self.drift = 0
        """Requests that it has beyond those that gateways know of."""
        self.drift_s = 0.0
        """How long it has had some that nobody knows of, or gateways some that it does not have."""
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
        self._run = (-1.0, "")
        self.enrolled = False
        """Whether this incarnation has been asked all that the gateway wants to know of it."""
        self.renders = False
        """Whether it renders prompts to token ids for others."""
        self.takes_ids = False
        """Whether it takes token ids in place of messages; found out by a probe."""
        self.pace = pace or Pace()
        self.kv_tokens = 0
        """Tokens of KV that fit into it, as it says; 0 while unknown."""
        self.leftover = Leftover()
        """KV that nobody will fetch."""
        self._others = _NO_LOAD
        self.prefill_us = 0
        self.backlog = Backlog()
        """Our prefills there; in monotonic time."""
        self.sharing = Sharing()
        self.coming_requests = 0
        self.coming_tokens = 0
        self.prefill_requests = 0
        self.prefill_tokens = 0
        self.decode_requests = 0
        self.decode_tokens = 0

    @classmethod
    def of(cls, wanted: Wanted, limits: Limits, rules: Rules = NORMAL) -> Self:
        """A new engine, as somebody wants it."""
        w = wanted
        made = cls(w.name, w.url, w.role, w.model, w.host, w.lease_s, limits, Pace(w.speed), rules)
        made.adopt(w)
        return made

    def adopt(self, wanted: Wanted) -> None:
        """The same process is wanted otherwise: in another role, on another host, ..."""
        self.wanted = wanted
        self.role, self.host, self.lease_s = wanted.role, wanted.host, wanted.lease_s
        self.pace.prior = wanted.speed
        self.cost = wanted.cost
        self.draining = wanted.drain

    @property
    def idle(self) -> bool:
        """Whether this gateway has nothing in flight on it."""
        return not (self.prefill_requests or self.decode_requests)

    @property
    def legs(self) -> tuple[Leg, ...]:
        """What it is used for."""
        return LEGS[self.role.value]

    def busy(self, leg: Leg) -> int:
        """Requests of ours on one leg."""
        return self.prefill_requests if leg == "prefill" else self.decode_requests

    def attempt(self, leg: Leg) -> None:
        """After a rest: see whether it works again."""
        self.breakers[leg].attempt()
        self._floor[leg] = self.busy(leg)

    def on_trial(self) -> contract.Role | None:
        """As what it takes one request more, while it is tried: nothing that is tried twice at once."""
        offers = self.offers
        for leg in LEGS[offers] if offers is not None else ():
            if self.breakers[leg].phase is Phase.TRIED:
                now = self.busy(leg)
                if now > self._floor[leg]:
                    if offers != "both":
                        return None
                    offers = "decode" if leg == "prefill" else "prefill"
                else:
                    self._floor[leg] = now
        return offers

    def serves(self, model: str) -> bool:
        return model == self.model or model in self.served

    @property
    def incarnation(self) -> str:
        """This run of it, by a name that all gateways share: a restarted engine holds nothing of what it held."""
        if self._run[0] != self.started_s:
            self._run = self.started_s, f"{self.url}#{self.started_s:.0f}"
        return self._run[1]

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

    def waits_s(self, now_s: float) -> float:
        """Of that, what is not done yet; if all of it is others', the present one is half done, on average."""
        if self.backlog:
            done_s = self.backlog.done_s(now_s, self.pace.lateness)
        else:
            done_s = 0.5e-6 * self._others.prefill_us / max(1, self._others.prefill_requests)
        return max(0.0, self.booked_s - done_s)

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

    @property
    def kv_room(self) -> int:
        """Tokens of KV that fit beside what waits there for nobody; 0 while unknown."""
        if not self.leftover:
            return self.kv_tokens
        left = self.leftover.tokens(asyncio.get_running_loop().time())
        return max(1, self.kv_tokens - left) if self.kv_tokens else 0

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
            prefill_since_s=self.backlog.since_s,
            kv_tokens=int(self.kv_room * self.sharing.factor),
            speed=pace.speed,
            cost=self.cost,
        )

    def __repr__(self) -> str:
        busy = f"{self.prefill_requests} prefilling, {self.decode_requests} decoding"
        return f"<Engine {self.name} {self.role} {self.state}: {busy}>"
