"""What policies are told of prompts whose conversation nobody names."""

from engines.double import Double
from tests.gateway.conftest import Gateway


async def test_policies_know_which_prompts_begin_alike() -> None:
    """So that one that keeps conversations together can do so where they are not named."""
    async with Double("prefill", "paul") as p, Double("decode", "dora") as d0, Double("decode", "dirk") as d1:
        async with Gateway.over(p, d0, d1, policy="session") as gateway:
            went: dict[int, set[str]] = {}
            for number in range(8):
                for turn in range(3):
                    prompt = f"Conversation {number}, longer each time. " * (4 + turn)
                    body = {"model": "m", "prompt": prompt, "max_tokens": 2}
                    answer = await gateway.http.post("/v1/completions", json=body, headers={"x-baton-facts": "1"})
                    went.setdefault(number, set()).add(answer.headers["x-baton-decode"])
            assert all(len(engines) == 1 for engines in went.values())
            assert set.union(*went.values()) == {"dora", "dirk"}
