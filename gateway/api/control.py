"""The routes that the gateway answers by itself: models, health, metrics."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import ApiError, model_not_found
from gateway.fleet.fleet import Fleet
from gateway.index.lookup import Lookup
from gateway.telemetry.metrics import Metrics


class Readiness:
    """Whether new requests should be sent here."""

    def __init__(self, fleet: Fleet, lookup: Lookup) -> None:
        self._fleet = fleet
        self._lookup = lookup
        self.draining = False

    @property
    def ready(self) -> bool:
        return not self.draining and self._fleet.ready()

    def report(self) -> dict[str, object]:
        """Everything a person wants to know when it is not ready."""
        engines = [
            {
                "name": engine.name,
                "role": engine.role,
                "model": engine.model,
                "url": engine.url,
                "state": engine.state,
                "why": engine.why,
                "prefill_requests": engine.prefill_requests,
                "decode_requests": engine.decode_requests,
            }
            for engine in self._fleet
        ]
        return {
            "ready": self.ready,
            "draining": self.draining,
            "missing": self._fleet.missing(),
            "warnings": self._lookup.warnings(),
            "engines": engines,
        }


def json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def failed(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers)


def routes(fleet: Fleet, metrics: Metrics, readiness: Readiness) -> list[Route]:
    """Starlette's routes for all of them."""

    async def models(request: Request) -> Response:
        entries = [msgspec.Raw(entry) for _, entry in sorted(fleet.models().items())]
        return json({"object": "list", "data": entries})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        entry = fleet.models().get(name)
        return json(msgspec.Raw(entry)) if entry is not None else failed(model_not_found(name))

    async def livez(request: Request) -> Response:
        return json({"alive": True})

    async def readyz(request: Request) -> Response:
        report = readiness.report() if "verbose" in request.query_params else {"ready": readiness.ready}
        return json(report, 200 if report["ready"] else 503)

    async def health(request: Request) -> Response:
        return Response(status_code=200 if readiness.ready else 503)

    async def scrape(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/health", health),
        Route("/metrics", scrape),
    ]
