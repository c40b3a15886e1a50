"""Errors in the shape that OpenAI's clients parse."""

from typing import Literal

import msgspec

Kind = Literal["invalid_request_error", "authentication_error", "permission_error", "not_found_error", "server_error"]


class ApiError(Exception):
    """An answer that is an error: an HTTP status with OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: Kind = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """`{"error": {...}}`; the outer `type` is what Anthropic's clients look for."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"type": "error", "error": error})

    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has begun."""
        return b"event: error\ndata: " + self.body() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


class Overloaded(ApiError):
    """All engines that were asked have too much to do. It reads as what the last one of them said."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(status, "The engines have too much to do.", kind="server_error", code="engine_overloaded")
        self._headers = headers
        self._body = body

    def body(self) -> bytes:
        return self._body

    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers


def model_not_found(model: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{model}` does not exist.",
        kind="not_found_error",
        param="model",
        code="model_not_found",
    )


def saturated(cause: str) -> ApiError:
    """No engine can serve it as it should be (setting refuse_saturated): `queues` or `memory`."""
    why = "it would wait too long" if cause == "queues" else "none has room for it"
    text = f"The engines have too much to do for this request: {why}. Try again later."
    return ApiError(429, text, kind="server_error", code="saturated", retry_after_s=1)


def unavailable(message: str, code: str = "no_engine") -> ApiError:
    """Nobody can serve this now; worth another try soon."""
    return ApiError(503, message, kind="server_error", code=code, retry_after_s=1)
