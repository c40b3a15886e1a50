"""One engine as the gateway sees it: where it is, whether it answers, what we have in flight on it."""

from enum import StrEnum

import policies.contract as contract
from engines.fleet import LEASE_S, Role
from gateway.wire.pool import Limits, Pool


class State(StrEnum):
    """Whether requests are sent to an engine."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Engine:
    """Live state of one engine. `why` says in words why it is not up."""

    def __init__(
        self,
        name: str,
        url: str,
        role: Role,
        model: str = "",
        host: str = "localhost",
        lease_s: float = LEASE_S,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.role = role
        self.host = host
        self.lease_s = lease_s
        self.pool = Pool(url, limits=limits or Limits())
        self.state = State.UNKNOWN
        self.why = "not checked yet"
        self.model = model
        self.served: dict[str, bytes] = {}
        """Models that the engine says it serves: id -> its entry in `/v1/models`, as JSON."""
        self.prefill_requests = 0
        self.prefill_tokens = 0
        self.decode_requests = 0
        self.decode_tokens = 0

    def serves(self, model: str) -> bool:
        return model == self.model or model in self.served

    def view(self) -> contract.Engine:
        """What a policy sees."""
        return contract.Engine(
            name=self.name,
            role=self.role.value,
            host=self.host,
            prefill_requests=self.prefill_requests,
            prefill_tokens=self.prefill_tokens,
            decode_requests=self.decode_requests,
            decode_tokens=self.decode_tokens,
        )

    def __repr__(self) -> str:
        busy = f"{self.prefill_requests} prefilling, {self.decode_requests} decoding"
        return f"<Engine {self.name} {self.role} {self.state}: {busy}>"
