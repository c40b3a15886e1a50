"""What `baton chaos` refuses, and how."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import build


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--gateway-command", "/nowhere/gateway", "g0: /nowhere/gateway: No such file or directory"),
        ("--gateway-command", "serve {nowhere}", "names in braces: port, redis, p0, d0"),
        ("--keep", "/proc/nowhere", "choose a folder that can be written"),
    ],
)
def test_mistakes_are_named_with_their_mend(tmp_path: Path, flag: str, value: str, said: str) -> None:
    arguments = ["chaos", "--requests", "10", "--prefill", "1", "--decode", "1", "--gateways", "1", flag, value]
    result = CliRunner().invoke(build("chaos"), arguments)
    assert (result.exit_code, result.stdout) == (2, "") and said in result.stderr, result.output
