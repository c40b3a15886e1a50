"""`baton double`, as a process of its own."""

import asyncio
import re
import signal
import sys

import httpx

from tests.double.conftest import PREFILL, chat
from tests.ports import fresh_port

_RUN = "import typer; from engines.double.command import double; typer.run(double)"


async def test_it_prints_where_they_are_and_ends_with_ctrl_c() -> None:
    arguments = ["--prefill", "1", "--decode", "2", "--port", str(fresh_port(3)), "--model", "m", "--events"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "faulthandler", "-c", _RUN, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(40):
            await _use_and_end(process)
    except TimeoutError:
        process.send_signal(signal.SIGABRT)  # tells where it is
        _, err = await process.communicate()
        raise AssertionError(err.decode()) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _use_and_end(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("Ctrl-C"):
        lines.append((await process.stdout.readline()).decode().strip())
        assert lines[-1] or not process.stdout.at_eof(), lines
    (serve,) = [line for line in lines if line.startswith("baton serve")]
    found = re.findall(r"--(prefill|decode) (http://127\.0\.0\.1:\d+)", serve)
    assert [role for role, _ in found] == ["prefill", "decode", "decode"]
    assert len({url for _, url in found}) == 3
    async with httpx.AsyncClient(verify=False) as http:
        path = "/v1/chat/completions"
        leg = await http.post(found[0][1] + path, json=chat(max_tokens=1, kv_transfer_params=PREFILL))
        params = leg.json()["kv_transfer_params"]
        one = await http.post(found[1][1] + path, json=chat(kv_transfer_params=params))
        other = await http.post(found[2][1] + path, json=chat())
        assert one.json()["choices"][0]["message"] == other.json()["choices"][0]["message"]
        assert (await http.get(found[1][1] + "/kv_event_sources")).json()["0"]["publisher"] == "zmq"
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert out.decode().strip() == "stopped"
    assert (process.returncode, err) == (0, b"")


async def test_a_taken_port_is_named() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _RUN, "--port", str(port), stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 2
        assert str(port) in err.decode()
