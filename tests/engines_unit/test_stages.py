"""The stage of a start is read from the log."""

from pathlib import Path

from engines.stages import stage


def test_stages_of_a_start(tmp_path: Path) -> None:
    log = tmp_path / "p0.log"
    assert stage(log) == "importing"
    log.write_text("INFO 01-01 [importing.py:44] Triton is not installed\n")
    assert stage(log) == "importing"
    with log.open("a") as file:
        for line, wanted in (
            ("Starting to load model /m...", "loading weights"),
            ("(EngineCore pid=1) INFO Loading weights took 0.02 seconds", "weights loaded"),
            ("INFO Starting vLLM server on http://127.0.0.1:8101", "opening its port"),
        ):
            file.write(line + "\n")
            file.flush()
            assert stage(log) == wanted


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "p0.log"
    log.write_bytes(b"Starting to load model\n" + b"\xff" * (1 << 20) + b"\nCapturing CUDA graphs\n")
    assert stage(log) == "capturing CUDA graphs"
