"""What gateways have in flight, as they tell each other through Redis: a blob each, with an end of its own."""

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from xxhash import xxh32_intdigest

from gateway.index.contract import InFlight

_HEAD = struct.Struct("<dH")
_ENTRY = struct.Struct("<8I")
_MOST = 0xFFFFFFFF


@lru_cache(65_536)
def number(name: str) -> int:
    """An engine's name in four bytes."""
    return xxh32_intdigest(name.encode())


def encode(loads: Mapping[str, InFlight], ends_ms: float) -> bytes:
    """`loads`, believed until `ends_ms` (Unix time in ms)."""
    try:
        entries = [_ENTRY.pack(number(url), *load) for url, load in loads.items()]
    except struct.error:  # beyond what four bytes hold
        entries = [_ENTRY.pack(number(u), *(min(max(part, 0), _MOST) for part in load)) for u, load in loads.items()]
    return _HEAD.pack(ends_ms, len(entries)) + b"".join(entries)


def ends(blob: bytes) -> float:
    """Until when a blob is believed (Unix time in ms)."""
    moment: float = _HEAD.unpack_from(blob)[0]
    return moment


def alive(blobs: bytes, now_ms: float) -> bool:
    """Whether some blob has not ended: another gateway is there."""
    at = 0
    while at < len(blobs):
        ends_ms, count = _HEAD.unpack_from(blobs, at)
        if ends_ms > now_ms:
            return True
        at += _HEAD.size + count * _ENTRY.size
    return False


def decode(blobs: bytes, now_ms: float, names: Mapping[int, str]) -> dict[str, InFlight]:
    """The sum of all blobs that have not ended; engines that are not known here are left out."""
    total: dict[str, InFlight] = {}
    at = 0
    while at < len(blobs):
        ends_ms, count = _HEAD.unpack_from(blobs, at)
        at += _HEAD.size
        if ends_ms > now_ms:
            for key, *load in _ENTRY.iter_unpack(blobs[at : at + count * _ENTRY.size]):
                if (name := names.get(key)) is not None:
                    total[name] = _sum(total.get(name), load)
        at += count * _ENTRY.size
    return total


def _sum(so_far: InFlight | None, load: Iterable[int]) -> InFlight:
    if so_far is None:
        return InFlight(*load)
    return InFlight(*(a + b for a, b in zip(so_far, load, strict=True)))
