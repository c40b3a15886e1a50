"""What a simulation moves about: engines with what is around them, and requests on their way."""

import math

from engines.model.core import Core
from engines.model.sequence import Sequence
from gateway.fleet.backlog import Backlog
from gateway.fleet.sharing import Sharing
from load.replay.fleet import Member
from load.replay.trace import Ask


class Booked:
    """What gateways have in flight on one engine."""

    __slots__ = (
        "backlog",
        "coming_requests",
        "coming_tokens",
        "decode_requests",
        "decode_tokens",
        "prefill_requests",
        "prefill_s",
        "prefill_tokens",
    )

    def __init__(self) -> None:
        self.coming_requests = self.coming_tokens = 0
        self.prefill_requests = self.prefill_tokens = self.decode_requests = self.decode_tokens = 0
        self.prefill_s = 0.0
        self.backlog = Backlog()

    def add(self, other: "Booked", times: int = 1) -> None:
        """And what another says; with -1 without it."""
        self.prefill_requests += times * other.prefill_requests
        self.prefill_tokens += times * other.prefill_tokens
        self.prefill_s = max(0.0, self.prefill_s + times * other.prefill_s)
        self.decode_requests += times * other.decode_requests
        self.decode_tokens += times * other.decode_tokens
        self.coming_requests += times * other.coming_requests
        self.coming_tokens += times * other.coming_tokens


class Node:
    """One engine and what is around it."""

    def __init__(self, index: int, member: Member, core: Core, pools: int) -> None:
        self.index = index
        """Its place in the fleet."""
        self.member = member
        self.core = core
        self.booked = [Booked() for _ in range(pools)]
        """One for all gateways, or one for each."""
        self.sharing = Sharing()
        self.scheduled_s = math.inf
        self.link_free_s = 0.0


class Job:
    """One request on its journey. Times are absolute, seconds."""

    __slots__ = (
        "alone",
        "arrived_s",
        "ask",
        "beside",
        "booked_s",
        "cached",
        "decode",
        "first_s",
        "gateway",
        "index",
        "last_s",
        "new",
        "prefill",
        "prefilled",
        "source",
        "spent_s",
        "transferred",
        "waits_s",
    )

    def __init__(self, index: int, ask: Ask, arrived_s: float, gateway: int) -> None:
        self.index = index
        self.ask = ask
        self.arrived_s = arrived_s
        self.gateway = gateway
        self.prefill: Node | None = None
        self.decode: Node
        self.source: Sequence | None = None
        """At the prefill engine, while that holds its blocks."""
        self.new = self.cached = self.transferred = 0
        self.booked_s = self.waits_s = 0.0
        self.spent_s = 0.0
        """What the decode engine had prefilled when the stream began."""
        self.beside = 0
        self.alone = True
        self.prefilled = False
        self.first_s = self.last_s = math.nan
