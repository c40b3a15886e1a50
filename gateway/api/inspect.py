"""Shows the index to people on the gateway's own machine."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.control import failed, json
from gateway.api.local import only_here
from gateway.errors import ApiError
from gateway.index.lookup import Lookup

TOP = 20


def routes(lookup: Lookup) -> list[Route]:
    """Starlette's routes; they answer to clients on this machine only."""

    async def index(request: Request) -> Response:
        try:
            only_here(request, "/index")
        except ApiError as error:
            return failed(error)
        try:
            top = int(request.query_params.get("top", TOP))
        except ValueError:
            return failed(ApiError(400, "top is a number of runs.", param="top"))
        found = {}
        for model, namespace in lookup.namespaces.items():
            runs = await namespace.index.runs() if top else []
            found[model] = {
                "block_size": namespace.prompts.block_size,
                "prompts": namespace.prompts.mode,
                "sources": namespace.ingest.status(),
                "stats": await namespace.index.stats(),
                "runs": runs if top < 0 else runs[:top],
            }
        return json(found)

    return [Route("/index", index)]
