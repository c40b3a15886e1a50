"""The admin routes: the fleet as it is, engines drained, removed and added, everything read again.

They are never on the public port. Each worker answers for all: it writes the orders down, follows them, and has the
others do so too.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engines.fleet import FleetError, Role
from engines.model.profile import UnknownProfile
from gateway.admission.keys import Keys
from gateway.api.control import Readiness, failed, json, together
from gateway.api.orders import OrderBook
from gateway.api.siblings import Siblings
from gateway.errors import ApiError
from gateway.fleet.roster import Orders, Roster
from gateway.fleet.wanted import Wanted
from gateway.reload import Reloading
from gateway.settings import LIVE, Settings, SettingsError
from gateway.wire.endpoint import Endpoint

Answer = Callable[[Request], Awaitable[Response]]
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


class New(msgspec.Struct, forbid_unknown_fields=True):
    """An engine to be added."""

    url: str
    role: Role
    name: str = ""
    model: str = ""
    host: str = "localhost"
    lease_s: float = 30.0


class Admin:
    """Of one gateway process."""

    def __init__(
        self,
        roster: Roster,
        readiness: Readiness,
        reloading: Reloading,
        settings: Settings,
        book: OrderBook,
        siblings: Siblings | None,
    ) -> None:
        self._roster = roster
        self._readiness = readiness
        self._reloading = reloading
        self._settings = settings
        self._book = book
        self._siblings = siblings
        self._keys = Keys.load(settings.admin_keys_file)

    def follow(self) -> None:
        """Take over the orders as they are."""
        self._roster.order(self._book.read())

    def routes(self) -> list[Route]:
        guard = self._guarded
        return [
            Route("/fleet", guard(self._list), methods=["GET"]),
            Route("/fleet", guard(self._add), methods=["POST"]),
            Route("/fleet/{name}", guard(self._remove), methods=["DELETE"]),
            Route("/fleet/{name}/{what:str}", guard(self._drain), methods=["POST"]),
            Route("/orders", guard(self._follow), methods=["POST"]),
            Route("/reload", guard(self._reload), methods=["POST"]),
            Route("/config", guard(self._config), methods=["GET"]),
        ]

    def _guarded(self, answer: Answer) -> Answer:
        async def checked(request: Request) -> Response:
            try:
                if request.client is None or request.client.host:  # by a unix socket come only those who may
                    self._keys.check(dict(request.headers.raw))
                return await answer(request)
            except ApiError as error:
                return failed(error)

        return checked

    async def _list(self, request: Request) -> Response:
        return json(await self._fleet())

    async def _fleet(self) -> dict[str, Any]:
        reports = [self._readiness.report()]
        if self._siblings is not None:
            answers = await self._siblings.ask("/readyz?verbose&worker")
            reports += [msgspec.json.decode(answer.content) for answer in answers.values()]
        report = together(reports)
        for engine in report["engines"]:
            engine["source"] = self._roster.origin.get(engine["name"], "leaving")
        return report

    async def _add(self, request: Request) -> Response:
        try:
            new = msgspec.json.decode(await request.body(), type=New)
            Endpoint(new.url)
        except (msgspec.DecodeError, ValueError) as error:
            raise ApiError(400, f"{error}: send url, role, and perhaps name, model, host, lease_s.") from None
        name = new.name or self._name(new.role)
        if not _NAME.fullmatch(name):
            raise ApiError(400, f"{name!r} is no name for an engine: use letters, digits, dots and dashes.")
        wanted = Wanted(name, new.url.rstrip("/"), new.role, new.model, new.host, new.lease_s)

        def add(orders: Orders) -> None:
            orders.removed.discard(name)
            orders.drained.pop(name, None)
            orders.added[name] = wanted

        here = next((one for one in self._readiness.engines() if one.url == wanted.url or one.name == name), None)
        if here is not None:
            raise ApiError(409, f"Engine {here.name} is at {here.url} already.", code="engine_exists")
        return await self._ordered(add)

    def _name(self, role: Role) -> str:
        """The first name of that role that is free, as those of engines given by URL."""
        number = 0
        while self._roster.known(f"{role[0]}{number}"):
            number += 1
        return f"{role[0]}{number}"

    async def _remove(self, request: Request) -> Response:
        name = self._known(request)

        def remove(orders: Orders) -> None:
            orders.drained.pop(name, None)
            if orders.added.pop(name, None) is None:
                orders.removed.add(name)

        return await self._ordered(remove)

    async def _drain(self, request: Request) -> Response:
        name, what = self._known(request), request.path_params["what"]
        if what not in ("drain", "resume"):
            raise ApiError(404, f"There is no {request.url.path} here.", kind="not_found_error", code="unknown_url")

        def drain(orders: Orders) -> None:
            orders.removed.discard(name)
            orders.drained[name] = what == "drain"

        return await self._ordered(drain)

    def _known(self, request: Request) -> str:
        name = str(request.path_params["name"])
        if not self._roster.known(name):
            names = ", ".join(self._roster.origin)
            raise ApiError(404, f"There is no engine {name}: there are {names}.", kind="not_found_error")
        return name

    async def _ordered(self, order: Callable[[Orders], None]) -> Response:
        with self._book.change() as orders:
            order(orders)
        self.follow()
        await self._others("/orders")
        return json(await self._fleet())

    async def _others(self, target: str) -> dict[int, Any]:
        """Have the other workers do the same; what each of them says."""
        if self._siblings is None:
            return {}
        return dict(await self._siblings.ask(f"{target}?worker", "POST"))

    async def _follow(self, request: Request) -> Response:
        self.follow()
        return json({})

    async def _reload(self, request: Request) -> Response:
        try:
            done = self._reloading.reload()
        except (FleetError, SettingsError, UnknownProfile) as error:
            raise ApiError(400, f"Refused, everything stays as it was: {error}", code="reload_refused") from None
        if "worker" not in request.query_params:
            await self._others("/reload")
        return json(done)

    async def _config(self, request: Request) -> Response:
        origin = self._reloading.origin()
        shown = {
            name: {"value": _shown(getattr(self._settings, name)), "from": origin.get(name, ""), "live": name in LIVE}
            for name in Settings.model_fields
        }
        return json({"settings": shown, "refused": self._reloading.refused})


def _shown(value: Any) -> Any:
    """A value without the password in its URL."""
    if isinstance(value, str) and "://" in value:
        return re.sub(r"(//[^/@]*:)[^/@]*@", r"\1***@", value)
    return value
