"""The stage of a start is read from the log, and the log is bounded."""

from pathlib import Path

from engines.log import Log
from engines.stages import Stages


def test_stages_of_a_start() -> None:
    stages, shares = Stages(), [0.0]
    assert stages.name == "importing"
    for line, wanted in (
        ("INFO 01-01 [importing.py:44] Triton is not installed", "importing"),
        ("Starting to load model /m...", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 2/4", "loading weights"),
        ("Loading safetensors checkpoint shards:  75%|███▊ | 3/4", "loading weights 75 %"),
        ("(EngineCore pid=1) INFO Loading weights took 0.02 seconds", "weights loaded"),
        ("INFO Starting vLLM server on http://127.0.0.1:8101", "opening its port"),
    ):
        stages.read(line)
        assert stages.name == wanted
        shares.append(stages.share)
    assert shares == sorted(shares)
    assert 0.8 < shares[-1] < 1.0


def test_lines_come_in_pieces_and_long_ones_are_cut(tmp_path: Path) -> None:
    heard: list[str] = []
    log = Log(tmp_path / "p0.log", listener=heard.append)
    log.begin("p0")
    for piece in (b"Starting to lo", b"ad model\rCapturing CUDA", b" graphs\n", b"\xff" * 40_000, b"\nlast"):
        log.feed(piece)
    assert log.stages.name == "capturing CUDA graphs"
    assert heard[:2] == ["Starting to load model", "Capturing CUDA graphs"]
    assert max(map(len, heard)) == 16 << 10
    log.end()
    assert log.tail(1) == "last"
    log.close()


def test_a_log_is_turned_over_and_bounded(tmp_path: Path) -> None:
    log = Log(tmp_path / "p0.log", most_bytes=10_000, files=2)
    log.begin("p0")
    for number in range(5000):
        log.feed(b"line %d\n" % number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p0.log", "p0.log.1", "p0.log.2"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * 10_000
    assert log.path.read_text().endswith("line 4999\n")
    assert log.tail(2) == "line 4998\nline 4999"
    log.close()


def test_a_new_process_begins_anew(tmp_path: Path) -> None:
    log = Log(tmp_path / "p0.log")
    log.begin("first")
    log.feed(b"Capturing CUDA graphs\n")
    log.begin("second")
    assert (log.tail(), log.stages.name) == ("", "importing")
    assert log.path.read_text() == "--- first\nCapturing CUDA graphs\n--- second\n"
    log.close()
