"""A request body as raw JSON values: fields come and go, what stays keeps its bytes.

`dict[str, msgspec.Raw]` parses only the top level: 18 µs for 64 KB, and big integers, `1.0`, escapes and unknown fields
reach the engine as the client wrote them.
"""

from collections.abc import Iterable, Mapping

import msgspec

from gateway.errors import ApiError

Raw = msgspec.Raw
Fields = Mapping[str, Raw]

TRUE, FALSE, ONE = Raw(b"true"), Raw(b"false"), Raw(b"1")
NULLS = (b"null", b"[]", b"{}", b'""', b"false")

_decode = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_value = msgspec.json.Decoder().decode

STEERING = frozenset(
    {
        "kv_transfer_params",  # reads other requests' blocks, dials any host, replaces the prompt
        "ec_transfer_params",  # the same for the encoder's cache
        "vllm_xargs",  # a second door for both
        "priority",  # queue jumping
        "cache_salt",  # probes and splits the prefix cache
        "request_id",  # block bookkeeping, forged logs
        "session_id",  # ends up in the engine's KV events
    }
)
"""What steers an engine and so never comes from a client (vLLM reads each of these on any API)."""


def parse(raw: bytes) -> dict[str, Raw]:
    """The top level of a JSON object, without what steers the engine. Raises `ApiError` 400."""
    try:
        fields = _decode(raw)
        if not raw.isascii():
            raw.decode()  # a Raw value is not checked by the parser
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not a JSON object: {error}.", code="invalid_json") from None
    for name in STEERING.intersection(fields):
        del fields[name]
    return fields


def value(fields: Fields, name: str) -> object:
    """The decoded value of a small field; None if it is absent or cannot be decoded (the engine will say why)."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _value(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def number(fields: Fields, name: str) -> int | None:
    """An integer field, as lax as the engine (`2`, `2.0`, `"2"`); None if it is absent or something else."""
    found = value(fields, name) if name in fields else None
    if type(found) is int:
        return found
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        return int(float(found))
    except (ValueError, OverflowError):
        return None


def flag(fields: Fields, name: str) -> bool:
    """A boolean field, as lax as the engine (`true`, `1`, `"true"`, `"yes"`, ...)."""
    if name not in fields:
        return False
    found = value(fields, name)
    if isinstance(found, str):
        return found.strip().lower() in ("1", "true", "t", "yes", "y", "on")
    return found == 1


def given(fields: Fields, name: str) -> bool:
    """True if a field is there and says something."""
    raw = fields.get(name)
    return raw is not None and bytes(raw) not in NULLS


def edit(fields: Fields, drop: Iterable[str], put: Mapping[str, Raw]) -> bytes:
    """The body without the fields `drop` and with the fields `put`."""
    edited = dict(fields)
    for name in fields.keys() & drop:
        del edited[name]
    edited.update(put)
    return _encode(edited)
