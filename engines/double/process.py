"""The process of a double: its ports, the incarnations of its engine, its death, and what came in."""

import asyncio
import dataclasses
from collections import deque
from collections.abc import Coroutine, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Literal, Self

from msgspec import json

from engines.double.engine import Engine
from engines.double.errors import RefusedError
from engines.double.events import publisher
from engines.double.faults import Faults
from engines.double.formats import Ids
from engines.double.limits import Limits
from engines.double.sequence import Sequence
from engines.double.server import Server
from engines.double.stats import Stats
from engines.double.timing import Timing
from engines.double.transfer import SideChannel

Role = Literal["prefill", "decode", "both"]

_KEPT_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived. Header names are lower case; of a repeated one the last is kept."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded. Raises `msgspec.DecodeError`."""
        return json.decode(self.body)


class Process:
    """One vLLM engine, or what looks like it, on a port of its own; start it with `async with` or `start`.

    `role` says what a fleet uses it for; every double can do everything. `limits` are its fixed sizes (keywords of
    `Limits` may be given directly). KV events are off unless `events` is true or a port is given; a port of 0 is any
    free one, kept over `die` and `revive`. With `dp` above 1 it has so many data-parallel ranks, each with its own
    scheduler, cache and events (at the ports that follow, as vLLM numbers them).
    """

    def __init__(
        self,
        role: Role = "both",
        name: str = "double",
        model: str = "m",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        nixl_port: int = 0,
        events: bool = False,
        events_port: int | None = None,
        replay_port: int | None = None,
        dp: int = 1,
        adapters: Many[str] = (),
        lease_s: float = 30.0,
        seed: int = 0,
        timing: Timing | None = None,
        faults: Faults | None = None,
        limits: Limits | None = None,
        **sizes: Any,
    ) -> None:
        self.role: Role = role
        self.name = name
        self.model = model
        self.adapters = dict.fromkeys(adapters)
        """LoRA adapters that it has, in order; they may come and go while it runs."""
        self.limits = dataclasses.replace(limits or Limits(), **sizes)
        self.timing = timing or Timing()
        self.faults = faults or Faults()
        self.ids = Ids(hash((seed, *name.encode())))
        self.requests: deque[Received] = deque(maxlen=_KEPT_REQUESTS)
        self.server = Server(self.app(), host, port)
        self.host = host
        self._lease_s = lease_s
        self._nixl_ports = [nixl_port and nixl_port + rank for rank in range(dp)]
        ports = (
            0 if events and events_port is None else events_port,
            0 if events and replay_port is None else replay_port,
        )
        self._endpoints = [[_endpoint(port and port + rank) for port in ports] for rank in range(dp)]
        self.engines: list[Engine] = []
        """The current incarnation, by rank."""
        self._ending: asyncio.Task[None] | None = None
        self._errands: list[Coroutine[Any, Any, None]] = []
        self._arrived = asyncio.Event()

    def app(self) -> Any:
        """What answers requests, as an ASGI application."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<Double {self.name} ({self.role}) {self.host}:{self.server.port} {self.engines}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Where it is reached: `http://host:port`. Raises RuntimeError before a free port has been found."""
        if not self.server.port:
            raise RuntimeError(f"double {self.name!r} has no port yet: start it first, or give it a port")
        return f"http://{self.host}:{self.server.port}"

    @property
    def engine(self) -> Engine:
        """The current incarnation (its first rank). Raises RuntimeError before `start`."""
        if not self.engines:
            raise RuntimeError(f"double {self.name!r} has not been started: use `async with`")
        return self.engines[0]

    def named(self, body: Mapping[str, Any]) -> str:
        """The model or adapter that a body asks for; the model if it asks for nothing that is here."""
        wanted = body.get("model")
        return wanted if isinstance(wanted, str) and wanted in self.adapters else self.model

    def of_rank(self, wanted: str | None) -> Engine:
        """The rank that `X-data-parallel-rank` names; the least busy one if it names none. Raises `RefusedError`."""
        if wanted is None or not wanted.lstrip("-").isdecimal():
            return min(self.engines, key=lambda engine: engine.stats.busy)
        if not 0 <= int(wanted) < len(self.engines):
            raise RefusedError(f"data_parallel_rank {wanted} is out of range [0, {len(self.engines)}).")
        return self.engines[int(wanted)]

    @property
    def engine_id(self) -> str:
        """NIXL's engine id; another one after each `revive`."""
        return self.engine.id

    @property
    def stats(self) -> Stats:
        """Counters and gauges of the current incarnation, up to date."""
        return self.engine.measured()

    @property
    def alive(self) -> bool:
        """Whether the engine lives (it may still refuse connections or hang)."""
        return bool(self.engines) and not self.engine.dead

    @property
    def lease_s(self) -> float:
        """How long blocks wait for a decode engine, seconds; a change counts for leases that begin later."""
        return self._lease_s

    @lease_s.setter
    def lease_s(self, seconds: float) -> None:
        self._lease_s = seconds
        for engine in self.engines:
            engine.leases.seconds = seconds

    @property
    def posts(self) -> list[Received]:
        """The requests that ask for something: all but the looks at its state."""
        return [request for request in self.requests if request.method == "POST"]

    async def start(self) -> None:
        """Listen and start an engine. Raises OSError, and leaves nothing behind, if a port is taken."""
        self.server.bind()
        engines: list[Engine] = []
        try:
            for rank in range(len(self._nixl_ports)):
                engines.append(await self._incarnate(rank))  # noqa: PERF401  # those made before one that fails are ended
        except BaseException:
            await self._end_engines(engines)
            await self.server.close()
            raise
        self.engines = engines
        self.server.listen()

    async def close(self) -> None:
        """Stop everything and give the ports back."""
        self.server.kill()
        if self.alive:
            await self._end_engines(self.engines)
        elif self._ending is not None:
            await self._ending
        await self.server.close()

    async def _incarnate(self, rank: int) -> Engine:
        source = None
        endpoint, replay_endpoint = self._endpoints[rank]
        if endpoint is not None:
            source = await publisher(self.limits.block_size, endpoint, replay_endpoint, self.faults, rank)
            self._endpoints[rank] = [source.endpoint, source.replay_endpoint]
        channel = SideChannel(self.host, self._nixl_ports[rank])
        suffix = f"_dp{rank}" if len(self._nixl_ports) > 1 else ""
        engine = Engine(
            f"{self.ids.next(8)}-{self.name}{suffix}",
            self.limits,
            self.timing,
            self.faults,
            lease_s=self._lease_s,
            channel=channel,
            publisher=source,
            on_death=self._died,
        )
        try:
            channel.open(engine)
        except BaseException:
            await self._end_engine(engine)
            raise
        self._nixl_ports[rank] = channel.port
        return engine

    async def _end_engines(self, engines: Many[Engine]) -> None:
        await asyncio.gather(*(self._end_engine(engine) for engine in engines))

    @staticmethod
    async def _end_engine(engine: Engine) -> None:
        await engine.close()
        await engine.channel.close()
        if engine.publisher is not None:
            await engine.publisher.close()

    # Faults that are events rather than states.

    def _died(self) -> None:
        self.server.kill()
        self._ending = asyncio.get_running_loop().create_task(self._end_engines(self.engines))

    async def die(self) -> None:
        """The process ends: connections drop, the ports refuse, the KV cache and the leases are gone."""
        self.engine.die()
        if self._ending is not None:
            await self._ending

    def expire_leases(self) -> int:
        """End all leases now, as if their time had passed; returns how many there were."""
        return self.engine.leases.expire()

    async def revive(self) -> None:
        """Start again on the same ports: a new engine id, an empty cache, counters at zero."""
        await self.die()
        self._ending = None
        await self.start()

    async def refuse(self, refuse: bool = True) -> None:
        """Refuse new connections, or accept them again."""
        self.faults.refuse = refuse
        if refuse:
            self.server.refuse()
        elif self.alive:
            self.server.listen()

    # Called by the app.

    def received(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Keep a request for whoever asks what was sent."""
        self.requests.append(Received(method, path, headers, body))
        self._arrived.set()

    async def answered(self) -> None:
        """An answer is out: do what was put off until then."""
        while self._errands:
            await self._errands.pop()

    def _later(self, errand: Coroutine[Any, Any, None]) -> None:
        self._errands.append(errand)

    def hand_over(self, sequences: Many[Sequence], api: str) -> dict[str, Any] | None:
        """The transfer parameters of an answer: the first prompt's on completions, else the last child's."""
        chosen = sequences[0] if api == "completions" else sequences[-1]
        params = chosen.answer_params
        if params is None or self.faults.drop_params:
            return None
        if self.faults.die_after_prefill:
            self.faults.die_after_prefill = False
            self._later(self.die())
        return {key: value for key, value in params.items() if key not in self.faults.omit_params}


def _endpoint(port: int | None) -> str | None:
    if port is None:
        return None
    return f"tcp://*:{port}" if port else "tcp://127.0.0.1:*"
