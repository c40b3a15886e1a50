"""A Redis where engines register, and the secret of their fleet."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.index.embedded import Embedded
from tests.registry.hosts import SECRET


@pytest.fixture
def redis() -> Iterator[Embedded]:
    with Embedded() as server:
        yield server


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    return file
