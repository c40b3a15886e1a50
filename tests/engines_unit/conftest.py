"""Supervisors as processes, ended whatever a test does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines_unit.engines import Engines


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engines]]:
    """Starts one; ended with all below it, whatever the test does."""
    made: list[Engines] = []

    def one(*roles: str, **more: Any) -> Engines:
        made.append(Engines(tmp_path, *roles, **more))
        return made[-1]

    yield one
    for it in made:
        it.clear()
