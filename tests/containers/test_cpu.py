"""`docker compose --profile cpu up`: two real vLLM engines in a container, KV over NIXL, the gateway in another."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.containers.engine import Engine

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

OVERLAY = ("-f", "compose.yaml", "-f", "tests/containers/cpu.yaml")


def test_real_engines(engine: Engine) -> None:
    """Five prompts are prefilled by one engine and decoded by the other, which fetched their KV; SIGTERM ends both."""
    found = find_spec("vllm")
    if found is None or found.origin is None or sys.version_info[:2] != (3, 11):
        pytest.skip("no vLLM for Python 3.11 here: make install")
    env = {"PACKAGES": str(Path(found.origin).parents[1]), "BATON_POLICY": "lmetric"}
    with engine.compose_up("cpu", *OVERLAY, env=env):
        engine.docker("exec", "baton-gateway-1", "baton", "smoke", "--demo")  # fails if no KV was fetched
        engine.compose(*OVERLAY, "--profile", "cpu", "stop", env=env)
        for name in ("gateway", "engines-cpu"):
            assert engine.inspect(f"baton-{name}-1")["State"]["ExitCode"] == 0, name
