"""The routes that the gateway answers by itself: models, health, metrics."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admission.keys import Keys
from gateway.api.local import only_here
from gateway.api.siblings import Siblings
from gateway.errors import ApiError, model_not_found
from gateway.fleet.breaker import Phase
from gateway.fleet.engine import Engine
from gateway.fleet.fleet import Fleet
from gateway.index.lookup import Lookup
from gateway.telemetry.lives import Lives
from gateway.telemetry.metrics import Metrics

_BALANCER_S = 60.0
WARM_S = 5.0
"""How long a gateway that could serve waits for its index; then it does without."""


class Readiness:
    """Whether new requests should be sent here.

    A gateway that starts waits until the index is as the engines tell: a first request placed in ignorance costs a
    prefill that somebody had done.
    """

    def __init__(
        self,
        fleet: Fleet,
        lookup: Lookup,
        policies: Callable[[], list[str]],
        elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        """`elsewhere`: whether another fleet serves what this one cannot."""
        self._elsewhere = elsewhere
        self._fleet = fleet
        self._lookup = lookup
        self._policies = policies
        self._warm = False
        self._served_s = 0.0
        self._asked_s = -_BALANCER_S
        self.draining = False

    def asked(self) -> bool:
        """Somebody wants to know: whether we are ready."""
        self._asked_s = time.monotonic()
        return self.ready

    @property
    def balanced(self) -> bool:
        """Whether somebody asks now and then, and stops sending requests when we are not ready."""
        return time.monotonic() < self._asked_s + _BALANCER_S

    @property
    def ready(self) -> bool:
        return not self.draining and (self._fleet.ready() or self._elsewhere()) and self._warmed()

    def _warmed(self) -> bool:
        if not self._warm:
            now = time.monotonic()
            self._served_s = self._served_s or now
            self._warm = self._lookup.settled or now > self._served_s + WARM_S
        return self._warm

    def engines(self) -> Iterator[Engine]:
        """Those that there are, and those that are leaving."""
        yield from self._fleet
        yield from self._fleet.leaving

    def report(self) -> dict[str, Any]:
        """Everything a person wants to know when it is not ready."""
        engines = [
            {
                "name": engine.name,
                "role": engine.role,
                "model": engine.model,
                "url": engine.url,
                "state": engine.state,
                "why": engine.why,
                "draining": engine.draining,
                "takes": engine.offers,
                "ejected": {leg: b.why for leg, b in engine.breakers.items() if b.phase is not Phase.CLOSED},
                "drift": engine.drift,
                "prefill_requests": engine.prefill_requests,
                "decode_requests": engine.decode_requests,
            }
            for engine in self.engines()
        ]
        return {
            "ready": self.ready,
            "draining": self.draining,
            "warm": self._warm,
            "missing": self._fleet.missing(),
            "warnings": self._lookup.warnings() + self._policies(),
            "engines": engines,
        }


def together(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of several workers as one: ready if all are, in flight what all have."""
    whole, *others = reports
    for other in others:
        whole["ready"] = whole["ready"] and other["ready"]
        for what in ("missing", "warnings"):
            if what in whole:
                whole[what] += [text for text in other[what] if text not in whole[what]]
        here = {(mine["name"], mine["url"]): mine for mine in whole.get("engines", ())}
        for theirs in other.get("engines", ()):
            mine = here.get((theirs["name"], theirs["url"]))
            if mine is None:  # it came or left just now
                whole["engines"].append(theirs)
                continue
            for count in ("prefill_requests", "decode_requests"):
                mine[count] += theirs[count]
    if others:
        whole["workers"] = len(reports)
    return whole


def json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def failed(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers)


def routes(keys: Keys, fleet: Fleet, metrics: Metrics, readiness: Readiness, siblings: Siblings | None) -> list[Route]:
    """Starlette's routes for all of them; health and metrics ask for no key."""

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            try:
                keys.check(dict(request.headers.raw))
            except ApiError as error:
                return failed(error)
            return await answer(request)

        return checked

    async def models(request: Request) -> Response:
        entries = [msgspec.Raw(entry) for _, entry in sorted(fleet.models().items())]
        return json({"object": "list", "data": entries})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        entry = fleet.models().get(name)
        return json(msgspec.Raw(entry)) if entry is not None else failed(model_not_found(name))

    async def livez(request: Request) -> Response:
        return json({"alive": True})

    lives = Lives(siblings.folder, siblings.number, siblings.count) if siblings is not None else None

    async def others(request: Request) -> dict[int, httpx.Response]:
        """What the other workers say of themselves; nothing if this one is asked for alone (`?worker`)."""
        if siblings is None or "worker" in request.query_params:
            return {}
        return await siblings.ask(f"{request.url.path}?worker&{request.url.query}")

    async def readyz(request: Request) -> Response:
        verbose = "verbose" in request.query_params
        try:
            if verbose:
                only_here(request, "/readyz?verbose, like the admin listener,")
        except ApiError as error:
            return failed(error)
        answers = await others(request)
        own = readiness.report() if verbose else {"ready": readiness.asked()}
        report = together([own, *(msgspec.json.decode(answer.content) for answer in answers.values())])
        return json(report, 200 if report["ready"] else 503)

    async def health(request: Request) -> Response:
        ready = readiness.asked() and all(answer.is_success for answer in (await others(request)).values())
        return Response(status_code=200 if ready else 503)

    async def scrape(request: Request) -> Response:
        answers = await others(request)
        text = metrics.render().decode()
        if lives is not None and "worker" in request.query_params:
            text = await asyncio.to_thread(lives.own, text)
        elif lives is not None:
            said = {number: answer.text for number, answer in answers.items() if answer.is_success}
            text = await asyncio.to_thread(lives.all, text, said)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return [
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{model:path}", guarded(model)),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/health", health),
        Route("/metrics", scrape),
    ]
