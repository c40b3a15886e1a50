"""The app: hot routes go straight to `Serving`, all others through Starlette."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engines.fleet import Fleet as FleetFile
from engines.record import SecretError, read_secret
from gateway.admission.keys import Keys
from gateway.api import inspect
from gateway.api.admin import Admin
from gateway.api.control import Readiness, failed, routes
from gateway.api.orders import OrderBook
from gateway.api.serving import Serving
from gateway.api.siblings import Siblings
from gateway.dispatch.fallback import Fallbacks
from gateway.dispatch.journey import Dispatcher
from gateway.dispatch.recording import Recording
from gateway.errors import ApiError
from gateway.fleet import wanted as wanting
from gateway.fleet.breaker import Rules
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Watch
from gateway.fleet.registry import Registry
from gateway.fleet.roster import Roster, Source
from gateway.fleet.wanted import Wanted
from gateway.front import asgi
from gateway.front.call import Call
from gateway.front.listener import Listener
from gateway.index.enrol import Enrolment, Tokenizers
from gateway.index.lookup import Lookup
from gateway.launch import Launch
from gateway.prompt.apis import APIS
from gateway.prompt.tokenizers import Folders
from gateway.reload import FILE, Reloading
from gateway.routing.router import Router
from gateway.settings import Settings, SettingsError
from gateway.telemetry.index import IndexState
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Tracing
from gateway.wire.pool import Limits

_HOT = {path.encode(): api for path, api in APIS.items()}


def fleet_of(file: FleetFile, settings: Settings) -> Fleet:
    """The engines that a fleet file names, as these settings want them treated. Raises `UnknownProfile`."""
    limits = Limits(connections=settings.connections_per_engine, connect_s=settings.connect_timeout_s)
    rules = Rules(row=settings.eject_failures, rest_s=settings.eject_s)
    return Fleet.of(file, limits, settings.ttft_slo_s, settings.itl_slo_s, rules)


class App:
    """One gateway: everything from a fleet to what answers a call."""

    def __init__(
        self,
        fleet: Fleet,
        settings: Settings,
        tracing: Tracing | None = None,
        tokenizers: Tokenizers | None = None,
        siblings: Siblings | None = None,
        launch: Launch | None = None,
        sources: Sequence[Source] = (),
        doors: Sequence[socket.socket] = (),
        wanted: Sequence[Wanted] | None = None,
    ) -> None:
        """`launch`: what a reload reads; `sources` tell of engines besides `wanted` (those that `fleet` has); `doors`:
        listening sockets for admin calls.
        """
        keys = Keys.load(settings.api_keys_file)
        self.fleet = fleet
        self.metrics = Metrics()
        self.metrics.watch(fleet)
        self.lookup = Lookup(fleet, self.metrics, settings)
        self.metrics.registry.register(IndexState(self.lookup))
        self.router = Router(settings, self.metrics)
        self.roster = Roster(fleet)
        self.roster.tell(FILE, wanted if wanted is not None else [engine.wanted for engine in fleet])
        folders = tokenizers if isinstance(tokenizers, Folders) else None
        self.reloading = Reloading(launch or Launch(), settings, self.roster, keys, folders, self.metrics, self._heed)
        self._fallbacks = Fallbacks(self.metrics, settings)
        self.readiness = Readiness(fleet, self.lookup, self._warnings, self._fallbacks.open)
        self._enrolment = Enrolment(fleet, self.lookup, tokenizers or Folders({}, settings.tokenizer), settings)
        fleet.members.append(self._enrolment)
        self._settings = settings
        self._registries = self._open_registries(folders)
        self._sources = (*sources, *self._registries)
        self._tasks: list[asyncio.Task[None]] = []
        self._heed()
        self._tracing = tracing or Tracing.of(settings)
        dispatcher = Dispatcher(fleet, self.lookup, self.router, self.metrics, settings)
        dispatching = Recording(dispatcher, settings) if settings.record_file else dispatcher
        self._serving = Serving(
            keys, fleet, self.lookup, dispatching, self.metrics, self._tracing, settings, self._fallbacks
        )
        book = OrderBook(siblings.orders if siblings is not None else None)
        self._orders = Admin(self.roster, self.readiness, self.reloading, settings, book, siblings)
        shown = [*routes(keys, fleet, self.metrics, self.readiness, siblings), *inspect.routes(self.lookup)]
        refusals = {HTTPException: _refused}
        self._others = Starlette(routes=shown, exception_handlers=refusals, lifespan=self._lifespan)
        self._admin = Listener(Starlette(routes=[*self._orders.routes(), *shown], exception_handlers=refusals), doors)

    @classmethod
    def of(
        cls,
        launch: Launch,
        file: FleetFile,
        settings: Settings,
        siblings: Siblings | None = None,
        doors: Sequence[socket.socket] = (),
    ) -> Self:
        """The gateway in front of the engines that a fleet file names, as `launch` read it."""
        folders = Folders.of(file, settings.tokenizer)
        fleet, wanted = fleet_of(file, settings), wanting.of_file(file)
        return cls(fleet, settings, None, folders, siblings, launch, doors=doors, wanted=wanted)

    def _heed(self) -> None:
        """What was read from the settings once follows them when they change."""
        s = self._settings
        self.fleet.drain_s, self.fleet.trust.most, self.fleet.trust.slow = s.drain_s, s.eject_most, s.eject_slow

    def _open_registries(self, folders: Folders | None) -> list[Registry]:
        """Where engines register themselves. Raises `SettingsError`."""
        settings = self._settings
        if not settings.fleet_secret_file:
            return []
        if not settings.redis:
            raise SettingsError("fleet_secret_file: engines register in a Redis: give --redis too")
        try:
            secret = read_secret(Path(settings.fleet_secret_file))
        except SecretError as error:
            raise SettingsError(f"fleet_secret_file: {error}") from None
        learn = folders.learn if folders is not None else (lambda model, tokenizer: None)
        refused = self.metrics.registrations_refused
        return [Registry(settings.redis, secret, lambda why: refused(why).inc(), learn, self.fleet.links.know)]

    def _warnings(self) -> list[str]:
        refused = self.reloading.refused
        told = [f"the last reload was refused: {refused}"] if refused else []
        for registry in self._registries:
            told += registry.troubles()
        told += self._fallbacks.troubles()
        return [*told, *self.roster.names.trouble.values(), *self.roster.conflicts, *self.router.warnings()]

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._orders.follow()
        watch = Watch(self.fleet, self._settings, self._enrolment)
        await watch.first_round()
        self.lookup.start()
        self.router.start()
        await self._admin.start()
        names = self.roster.names.follow(self.roster.again)
        self._tasks = [
            asyncio.create_task(self.reloading.watch(), name="reload"),
            asyncio.create_task(names, name="names"),
        ]
        for source in self._sources:
            tell = partial(self.roster.tell, source.name)
            self._tasks.append(asyncio.create_task(source.follow(tell), name=f"source {source.name}"))
        try:
            yield
        finally:
            self._admin.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.router.close()
            await watch.stop()
            await self._enrolment.close()
            await self.lookup.close()
            self.fleet.close()
            self._fallbacks.close()
            await asyncio.to_thread(self._tracing.close)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """ASGI for the server's lifespan and for the routes that are not hot."""
        await self._others(scope, receive, send)

    def answer(self, call: Call) -> Awaitable[None]:
        """Answer any call."""
        api = _HOT.get(call.url) or _HOT.get(asgi.split(call.url)[0])
        return self._serving(call, api) if api is not None else asgi.serve(self._others, call)


async def _refused(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in the shape of all others."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return failed(
            ApiError(404, f"There is no {request.url.path} here.", kind="not_found_error", code="unknown_url")
        )
    return failed(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
