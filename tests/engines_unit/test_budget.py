"""When a new engine serves worse than those before it, read from pages of metrics."""

from engines.budget import Figures, errs, slows
from engines.supervision import Supervision

RULES = Supervision(watch_errors=0.02, watch_ttft=3, watch_itl=1.5)


def page(good: int, bad: int = 0, broken: int = 0, ttft_s: float = 0.1, itl_s: float = 0.02) -> str:
    count = good + broken
    return (
        f'http_requests_total{{handler="/v1/completions",method="POST",status="2xx"}} {count}.0\n'
        f'http_requests_total{{handler="/v1/completions",method="POST",status="5xx"}} {bad}.0\n'
        'http_requests_total{handler="/v1/models",method="GET",status="5xx"} 100.0\n'
        f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {good}.0\n'
        f'vllm:request_success_total{{engine="0",finished_reason="error"}} {broken}.0\n'
        f'vllm:time_to_first_token_seconds_bucket{{le="0.1"}} 3.0\n'
        f"vllm:time_to_first_token_seconds_sum {count * ttft_s}\nvllm:time_to_first_token_seconds_count {count}.0\n"
        f"vllm:inter_token_latency_seconds_sum {count * 10 * itl_s}\n"
        f"vllm:inter_token_latency_seconds_count {count * 10}.0\n"
    )


BEFORE = Figures.of(page(990, bad=10))


def test_errors_and_broken_streams_are_counted_once() -> None:
    assert Figures.of(page(100, bad=3))[:2] == (103, 3)
    assert Figures.of(page(100, broken=4))[:2] == (104, 4)
    assert Figures.of("") == Figures()


def test_errors_burn_beside_those_that_were_there_before() -> None:
    assert not errs(Figures.of(page(97, bad=2)), BEFORE, RULES)  # too few to say
    assert not errs(Figures.of(page(195, bad=5)), BEFORE, RULES)  # 2.5 %: 1 % was there, 2 % are allowed
    assert errs(Figures.of(page(95, bad=5)), BEFORE, RULES).startswith("5 of 100 answers were errors, 1.0% before")
    assert errs(Figures.of(page(95, broken=5)), BEFORE, RULES)


def test_latency_burns_where_enough_was_seen() -> None:
    assert not slows(Figures.of(page(20, ttft_s=0.29, itl_s=0.029)), BEFORE, RULES)
    assert "its TTFT is 310.0 ms, 3.1 times what it was (100.0 ms" in slows(
        Figures.of(page(20, ttft_s=0.31)), BEFORE, RULES
    )
    assert "its ITL is 31.0 ms" in slows(Figures.of(page(20, itl_s=0.031)), BEFORE, RULES)
    assert not slows(Figures.of(page(4, ttft_s=0.59)), BEFORE, RULES)  # half of what is enough: twice as far off
    assert "its TTFT is 610.0 ms" in slows(Figures.of(page(4, ttft_s=0.61)), BEFORE, RULES)
    assert not slows(Figures.of(page(0)), BEFORE, RULES)
    assert not slows(Figures.of(page(20, ttft_s=9.0)), Figures(), RULES)


def test_counters_of_another_process_are_all_new() -> None:
    assert Figures.of(page(5)).since(Figures.of(page(100))) == Figures.of(page(5))
    assert Figures.of(page(100)).since(Figures.of(page(40)))[0] == 60
