"""What a supervisor decides: when to try again and when to give up, what has hung, what a log's end means."""

import pytest

from engines.diagnosis import diagnose
from engines.pulse import Pulse
from engines.supervision import Crashes, Supervision

RULES = Supervision(backoff_s=1, backoff_most_s=8, crashes=6, crash_window_s=100, health_s=30, stall_s=60)


def test_pauses_double_up_to_a_limit_and_end() -> None:
    crashes = Crashes(RULES)
    pauses = [crashes.ended(float(at)) for at in range(6)]
    assert pauses[-1] is None
    for pause, about in zip(pauses[:-1], (1, 2, 4, 8, 8), strict=True):
        assert pause == pytest.approx(about, rel=0.21)


def test_crashes_of_long_ago_do_not_count() -> None:
    crashes = Crashes(RULES)
    assert all(crashes.ended(at * 101.0) == pytest.approx(1, rel=0.21) for at in range(20))


def test_who_mends_it_begins_anew() -> None:
    crashes = Crashes(RULES)
    while crashes.ended(0.0) is not None:
        pass
    crashes.forget()
    assert crashes.ended(0.0) == pytest.approx(1, rel=0.21)


def page(running: int, waiting: int, tokens: int) -> str:
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}.0\nvllm:num_requests_waiting{{engine="0"}} {waiting}.0\n'
        f'vllm:generation_tokens_total{{engine="0"}} {tokens}.0\n'
    )


def test_silence_is_a_hang() -> None:
    pulse = Pulse(RULES, 0.0)
    assert not pulse.hung(30.0)
    assert "not answered /health for 31 s" in pulse.hung(31.0)
    pulse.answered(31.0)
    assert not pulse.hung(61.0)


def test_work_without_tokens_is_a_hang() -> None:
    pulse = Pulse(RULES, 0.0)
    for now in range(0, 200, 10):
        pulse.answered(now)
        pulse.metrics(page(1, 2, tokens=min(now, 100)), now)
        assert bool(pulse.hung(now)) == (now > 160), now
    assert "has 3 requests, and no token for 90 s" in pulse.hung(190)


def test_idle_for_hours_is_no_hang() -> None:
    pulse = Pulse(RULES, 0.0)
    for now in range(0, 10_000, 100):
        pulse.answered(now)
        pulse.metrics(page(0, 0, tokens=5), now)
        assert not pulse.hung(now)
    pulse.metrics(page(1, 0, tokens=5), 10_000)
    pulse.answered(10_050)
    assert not pulse.hung(10_050)


@pytest.mark.parametrize(
    ("said", "mend", "final"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "raise tp", False),
        (
            "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.2 GiB).",
            "stop what else `nvidia-smi` shows",
            False,
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "lower max_model_len", True),
        ("KV cache is needed, which is larger than the available KV cache memory (3.00 GiB)", "max_model_len", True),
        ("OSError: [Errno 98] Address already in use", "choose others in the fleet file", False),
        ("RuntimeError: No CUDA GPUs are available", "compare `gpus` with `nvidia-smi -L`", True),
        ("torch.AcceleratorError: CUDA error: invalid device ordinal", "compare `gpus`", True),
        (
            "OSError: org/nomodel is not a local folder and is not a valid model identifier listed on",
            "there is no model org/nomodel: correct `path` in [models]",
            True,
        ),
        ("api_server.py: error: unrecognized arguments: --no-such-flag 1", "does not know --no-such-flag 1", True),
        ("python: No module named vllm", "vLLM is not installed here", True),
        ("OSError: [Errno 28] No space left on device", "a disk is full", False),
    ],
)
def test_known_ends(said: str, mend: str, final: bool) -> None:
    found = diagnose(f"INFO something\n{said}\nTraceback: more\n", 1)
    assert mend in found.words
    assert found.final is final


def test_unknown_ends() -> None:
    assert diagnose("Segmentation fault", 139).words == ""
    assert "out-of-memory killer" in diagnose("", 137).words
