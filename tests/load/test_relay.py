"""The relay benchmark measures a real gateway, and its generator notices what is lost."""

import asyncio
import json
import os
import subprocess

import pytest
from typer.testing import CliRunner

from gateway.cli import build
from load.blaster import STREAM, Counts, one, request
from load.relay import Figures, cpu_s, rss_mb
from load.standin import CHUNKS, STREAM_HEAD


def test_it_prints_figures_of_a_real_gateway() -> None:
    arguments = ["load", "relay", "--seconds", "0.2", "--rounds", "1", "--json"]
    arguments += ["--work", "request-2k", "--work", "stream-firehose"]
    result = CliRunner().invoke(build("load"), arguments)
    assert result.exit_code == 0, result.output
    for figures in json.loads(result.stdout):
        assert figures["completed"] > 0
        assert figures["bad"] == 0
        assert figures["cpu_us"] > 0
        assert figures["rss_mb"] > 10


def test_unknown_work_is_named() -> None:
    result = CliRunner().invoke(build("load"), ["load", "relay", "--work", "nothing"])
    assert result.exit_code == 2
    assert "request-2k" in result.output


@pytest.mark.parametrize(
    ("peer", "status", "said"),
    [
        ("other", 2, "write NAME=COMMAND"),
        ("other=serve {nowhere}", 2, "no name 'nowhere': names in braces: port, p0"),
        ("other=serve {", 2, "names in braces: port, p0"),
        ("other='serve", 2, "No closing quotation"),
        ("other=/nowhere/gateway", 1, "/nowhere/gateway ended with 127 before it answered"),
    ],
)
def test_a_peer_that_cannot_be_started_is_named(
    monkeypatch: pytest.MonkeyPatch, peer: str, status: int, said: str
) -> None:
    monkeypatch.setattr("load.commands.OURS", {})
    arguments = ["load", "relay", "--peer", peer, "--work", "request-2k", "--rounds", "1"]
    result = CliRunner().invoke(build("load"), arguments)
    assert (result.exit_code, result.stdout) == (status, "") and said in result.stderr, result.output


def test_a_name_is_given_once() -> None:
    result = CliRunner().invoke(build("load"), ["load", "relay", "--peer", "baton=serve"])
    assert (result.exit_code, result.stdout) == (2, "") and "that name is taken" in result.stderr


def test_what_was_measured_before_a_peer_failed_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(command: str, *_: object) -> Figures:
        if command == "fails":
            raise RuntimeError("fails did not answer")
        return Figures(1.0, "request", 2.0, 3.0, 4.0, 0.0, 5.0, 6, 0)

    monkeypatch.setattr("load.commands.measure", measured)
    arguments = ["load", "relay", "--peer", "other=fails", "--work", "request-2k", "--rounds", "1", "--json"]
    result = CliRunner().invoke(build("load"), arguments)
    assert result.exit_code == 1 and "fails did not answer; what was measured until then" in result.stderr
    assert [figures["target"] for figures in json.loads(result.stdout)] == ["baton", "load-only"]


def test_no_figure_is_cut_where_a_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Figures(123456.0, "request", 234567.0, 34567.0, 45678.0, 5678.0, 6789.0, 7890123, 0)
    monkeypatch.setattr("load.commands.measure", lambda *_: figures)
    result = CliRunner(env={"COLUMNS": "40"}).invoke(build("load"), ["load", "relay", "--work", "request-2k"])
    assert result.exit_code == 0
    for figure in ("123456", "234567", "34567", "45678", "5678", "6789", str(3 * 7890123)):
        assert f" {figure} " in result.stdout


def test_ctrl_c_before_anything_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("load.commands.measure", interrupted)
    result = CliRunner().invoke(build("load"), ["load", "relay"])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "stopped\n")


def test_a_process_that_ends_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr("load.relay.tree", lambda guard: [ended.pid, os.getpid()])
    assert list(cpu_s(0)) == [os.getpid()]
    assert rss_mb(0) > 10


async def check(chunks: list[bytes]) -> Counts:
    """What the generator makes of a stream of these chunks."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM_HEAD + b"".join(chunks))
        await writer.drain()
        writer.close()

    counts = Counts()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await one(reader, writer, request("hi", stream=True), True, counts)
        writer.close()
        await writer.wait_closed()
    return counts


async def test_a_lost_doubled_or_swapped_event_is_noticed() -> None:
    assert len(STREAM) > 20_000
    assert (await check(CHUNKS)).bad == 0
    assert (await check(CHUNKS[:5] + CHUNKS[6:])).bad == 1
    assert (await check(CHUNKS[:5] + CHUNKS[4:])).bad == 1
    assert (await check([CHUNKS[1], CHUNKS[0], *CHUNKS[2:]])).bad == 1
