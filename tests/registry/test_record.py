"""A registration is believed only with the fleet's secret, and only while it is fresh."""

import time
from pathlib import Path

import msgspec
import pytest

from engines import record
from engines.fleet import Fleet, Role
from engines.record import Entry, Link, Record, Refused, SecretError

SECRET = b"0123456789abcdef"
ENTRY = Entry(
    "gpu1:8101", time.time(), (Record("p0", "http://10.0.0.1:8101", Role.PREFILL, "m"),), (Link("a", "b", 200),)
)


def test_what_is_signed_is_read_again() -> None:
    entry = msgspec.structs.replace(ENTRY, signed_s=time.time())
    assert record.verify(record.sign(entry, SECRET), "gpu1:8101", SECRET) == entry


@pytest.mark.parametrize("at", [0, 31, 32, 60, -1])
def test_what_was_changed_on_its_way_is_refused(at: int) -> None:
    blob = bytearray(record.sign(ENTRY, SECRET))
    blob[at] ^= 1
    with pytest.raises(Refused, match="another secret"):
        record.verify(bytes(blob), "gpu1:8101", SECRET)


@pytest.mark.parametrize(
    ("blob", "host", "secret", "reason"),
    [
        (record.sign(ENTRY, SECRET), "gpu1:8101", b"another secret...", "signature"),
        (record.sign(ENTRY, SECRET), "gpu2:8101", SECRET, "signature"),
        (b"", "gpu1:8101", SECRET, "signature"),
        (b"nonsense" * 20, "gpu1:8101", SECRET, "signature"),
        (record.sign(Entry("h", time.time() - 3600), SECRET), "h", SECRET, "stale"),
        (record.sign(Entry("h", time.time() + 3600), SECRET), "h", SECRET, "stale"),
        (record._mac(b"{}", SECRET) + b"{}", "h", SECRET, "unreadable"),
    ],
    ids=["secret", "host", "empty", "nonsense", "past", "future", "unreadable"],
)
def test_what_is_refused(blob: bytes, host: str, secret: bytes, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        record.verify(blob, host, secret)
    assert refused.value.reason == reason


def test_an_engine_of_the_fleet_file() -> None:
    raw = {
        "models": {"m": {"path": "org/m", "block_size": 32, "lease_s": 60}},
        "hosts": {"gpu1": {"address": "10.0.0.1"}},
        "engines": [{"name": "b0", "role": "both", "port": 8101, "host": "gpu1", "profile": "gpt-oss-120b-h100-tp4"}],
    }
    fleet = Fleet.parse(raw)
    told = record.of_engine(fleet, fleet.engines[0])
    assert (told.url, told.model, told.host, told.block_size, told.lease_s) == (
        "http://10.0.0.1:8101",
        "m",
        "gpu1",
        32,
        60.0,
    )
    assert told.tokenizer == "org/m"
    assert told.speed is not None
    assert record.of_engine(fleet, fleet.engines[0], "203.0.113.9").url == "http://203.0.113.9:8101"


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(SecretError, match=r"openssl rand -hex 32 > .*secret"):
        record.read_secret(file)
    file.write_text("short\n")
    with pytest.raises(SecretError, match="shorter than 16 bytes"):
        record.read_secret(file)
    file.write_text("0123456789abcdef\n")
    assert record.read_secret(file) == SECRET
