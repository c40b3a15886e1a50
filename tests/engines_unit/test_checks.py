"""What is in the way is found before anything is started."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.checks import CannotStart, alone, can_start, is_here, ports_are_free, to_start
from engines.fleet import Fleet
from tests.ports import fresh_port, fresh_ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def fleet(port: int, address: str = "127.0.0.1", path: str = "org/m", **more: Any) -> Fleet:
    engine = {"name": "e0", "role": "both", "port": port, "host": "h", **more}
    return Fleet.parse({"models": {"m": {"path": path}}, "engines": [engine], "hosts": {"h": {"address": address}}})


def test_free() -> None:
    ports = fresh_ports()
    ports_are_free(fleet(next(ports)), "127.0.0.1", next(ports))


def test_gateway_port(taken: int) -> None:
    with pytest.raises(CannotStart, match=rf"port {taken} .* in use; stop what listens .* --port: choose another"):
        ports_are_free(fleet(fresh_port()), "127.0.0.1", taken)


def test_an_address_of_another_kind_or_none() -> None:
    port = fresh_port()
    with pytest.raises(CannotStart, match=r"nowhere\.invalid: .*give an address of this machine"):
        ports_are_free(fleet(fresh_port()), "nowhere.invalid", port)
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", port))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        with pytest.raises(CannotStart, match=rf"port {port} on ::1"):
            ports_are_free(fleet(fresh_port()), "::1", port)
    ports_are_free(fleet(fresh_port()), "::1", port)


def test_engine_port(taken: int) -> None:
    with pytest.raises(CannotStart, match=rf"port {taken} .* engines\.e0\.port: choose another in the fleet file"):
        can_start(fleet(taken), fleet(taken).engines, [])


def test_gpus_that_are_not_there() -> None:
    wanted = fleet(fresh_port(), gpus=[2, 3, 5])
    with pytest.raises(CannotStart, match=r"engines\.e0\.gpus: there is no GPU 3, 5 here, only 0, 1, 2: correct"):
        can_start(wanted, wanted.engines, [0, 1, 2])
    can_start(wanted, wanted.engines, [])  # nvidia-smi does not tell: the engine will
    can_start(wanted, wanted.engines, range(8))


def test_model_folder_that_is_none(tmp_path: Path) -> None:
    port = fresh_port()
    wrong, right = fleet(port, path=str(tmp_path / "m")), fleet(port, path=str(tmp_path))
    (tmp_path / "config.json").touch()
    with pytest.raises(CannotStart, match=r"models\.m\.path: no config\.json in .*: correct it, or mount"):
        can_start(wrong, wrong.engines, [])
    can_start(right, right.engines, [])


def test_a_host_by_name() -> None:
    elsewhere = fleet(8101, "192.0.2.1")  # a container knows its host by name, not by address
    assert to_start(elsewhere, "h") == list(elsewhere.engines)
    assert to_start(elsewhere, "localhost") == []
    with pytest.raises(CannotStart, match=r"--host x: not in \[hosts\]: add \[hosts\.x\] or use one of localhost, h"):
        to_start(elsewhere, "x")


def test_gateway_and_engine_on_one_port() -> None:
    port = fresh_port()
    with pytest.raises(CannotStart, match=rf"port {port} is engines\.e0\.port: choose another with --port"):
        ports_are_free(fleet(port), "127.0.0.1", port)


def test_engines_of_other_machines_are_left_alone(taken: int) -> None:
    elsewhere = fleet(taken, "192.0.2.1")  # RFC 5737: belongs to no machine
    assert to_start(elsewhere) == []
    assert to_start(fleet(taken)) != []
    ports_are_free(elsewhere, "127.0.0.1", fresh_port())


def test_here() -> None:
    assert is_here("127.0.0.1")
    assert is_here("localhost")
    assert not is_here("192.0.2.1")


def test_alone(tmp_path: Path) -> None:
    with alone(tmp_path / "state"):
        other = "import sys, pathlib, engines.checks as c\nwith c.alone(pathlib.Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", other, str(tmp_path / "state")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"another `baton up` (process {os.getpid()})" in ended.stderr
    with alone(tmp_path / "state"):
        pass
