"""What only people on the gateway's own machine are shown on the public port."""

from starlette.requests import Request

from gateway.errors import ApiError

_HERE = ("127.0.0.1", "::1", "")  # the last is a unix socket's
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")


def only_here(request: Request, what: str) -> None:
    """Raises `ApiError` (403) for a client elsewhere, one behind a proxy on this machine included."""
    client = request.client
    if client is None or client.host not in _HERE or any(name in request.headers for name in _FORWARDED):
        raise ApiError(403, f"{what} answers on the gateway's own machine only.", kind="permission_error")
