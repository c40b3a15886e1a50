"""The images: small, quick, not root, nothing to write, nothing in them that should not be."""

import pytest

from tests.containers.engine import BASE, ENGINE, GATEWAY, Engine

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

SLIM_BYTES = 125_000_000
"""Of `python:3.12-slim-bookworm`, which users get instead of our base."""

REGISTRIES = ("pypi.org", "pythonhosted.org", "debian.org", "pytorch.org")


def test_the_gateway_is_lean(engine: Engine) -> None:
    ours = engine.inspect(GATEWAY)["Size"] - engine.inspect(BASE)["Size"]
    assert ours + SLIM_BYTES < 250_000_000
    found = engine.docker("run", "--rm", "--network", "none", "--entrypoint", "ls", GATEWAY, *sites(engine))
    unwanted = {"torch", "vllm", "numpy", "pip", "mypy", "setuptools"}
    assert "gateway" in found.split() and not unwanted & set(found.split())


def sites(engine: Engine) -> list[str]:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return [
        engine.docker("run", "--rm", "--network", "none", "--entrypoint", "python3", GATEWAY, "-c", program).strip()
    ]


def test_the_hot_path_is_compiled(engine: Engine) -> None:
    told = engine.docker("run", "--rm", "--network", "none", GATEWAY, "native", "--check")
    assert "compiled files in /opt/baton" in told
    assert "interpreted: BATON_NATIVE=0" not in told


def test_neither_is_root_or_writes_anywhere(engine: Engine) -> None:
    for image in (GATEWAY, ENGINE):
        assert engine.inspect(image)["Config"]["User"] == "10001:10001"
        flags = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp"]
        assert engine.docker("run", *flags, "--entrypoint", "baton", image, "--version").startswith("baton ")


def test_no_registry_and_no_secret_is_told(engine: Engine) -> None:
    """Neither in what an image is set to nor in how it was made."""
    for image in (GATEWAY, ENGINE):
        told = engine.docker("history", "--no-trunc", image) + str(engine.inspect(image)["Config"])
        assert not [host for host in REGISTRIES if host in told]
