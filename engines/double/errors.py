"""Errors as vLLM's API server words them.

Two families (`entrypoints/serve/exception_handling`): a body that does not fit the schema is `"Bad Request"` with the
text of the validator; anything that the engine refuses later is `"BadRequestError"` and the like.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import json


class RefusedError(Exception):
    """The request is answered with an error.

    `admitted`: the request had passed the schema, so a prefill engine whose blocks it names is told of the refusal.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "BadRequestError",
        status: int = 400,
        param: str | None = None,
        admitted: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.status = status
        self.param = param
        self.admitted = admitted

    def body(self) -> bytes:
        return error_body(self.message, self.kind, self.status, self.param)

    def anthropic_body(self) -> bytes:
        """The shape of `/v1/messages`, for what is refused after the schema."""
        return json.encode({"type": "error", "error": {"type": self.kind, "message": self.message}})


def error_body(message: str, kind: str, status: int, param: str | None = None) -> bytes:
    return json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def bad_value(message: str, param: str, value: Any = ..., *, admitted: bool = True) -> RefusedError:
    """A parameter's value is refused; vLLM adds the name and the value to the message."""
    shown = f"parameter={param}" if value is ... else f"parameter={param}, value={value}"
    return RefusedError(f"{message} ({shown})", param=param, admitted=admitted)


def bad_body(kind: str, where: str, message: str, got: Any, context: Mapping[str, Any] | None = None) -> RefusedError:
    """The body does not fit the schema at `where` (dotted, from `body` on)."""
    entry: dict[str, Any] = {"type": kind, "loc": where, "msg": message, "input": _summary(got)}
    if context is not None:
        entry["ctx"] = context
    return RefusedError(f"1 validation error:\n  {entry}", kind="Bad Request", param=where, admitted=False)


def _summary(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "...[truncated]"
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def no_model(name: object, served: str) -> RefusedError:
    return RefusedError(
        f"The model `{name}` does not exist. Valid aliases: {served}.",
        kind="NotFoundError",
        status=404,
        param="model",
    )


def queue_full() -> RefusedError:
    return RefusedError(
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        kind="Service Unavailable",
        status=503,
    )


INTERNAL = ("Internal server error", "InternalServerError", 500)
"""A request that failed in the engine (a transfer, for one)."""

STREAM_INTERNAL = (
    b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}'
    b"\n\n"
)
"""The same as the last event but one of a stream; with the spaces of the real one."""
