"""One Docker engine with the repository's images for all tests here; and Baton under compose, profile by profile."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.containers.engine import ENGINE, GATEWAY, REPO, Engine, missing
from tests.namespace import Namespace


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine, with images built from the Dockerfiles, and cut off from everything."""
    if why := missing():
        assert not os.environ.get("CI"), f"CI must be able to run containers: {why}"
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="baton-", dir="/var/tmp"))
    made = Engine(folder)
    try:
        made.start(alone=False)
        made.make_base(REPO / "build" / "base.tar")
        with ThreadPoolExecutor() as both:  # one compiles while the other downloads
            files = {"docker/gateway.Dockerfile": GATEWAY, "docker/engine.Dockerfile": ENGINE}
            list(both.map(made.build, files, files.values()))
        made.stop()
        made.start(alone=True)
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def inside(engine: Engine) -> Iterator[Namespace]:
    """Where containers have their ports."""
    with Namespace(f"/proc/{engine.pid}/ns/net") as namespace:
        yield namespace
