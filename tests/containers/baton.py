"""What a user does with Baton in containers, from inside of their network; blocking, for `Namespace.run`."""

from collections.abc import Callable
from typing import Any

import httpx
import openai

URL = "http://127.0.0.1:8000"


def get(url: str) -> httpx.Response | None:
    """The answer, if there is one."""
    try:
        return httpx.get(url, trust_env=False, timeout=5.0)
    except httpx.HTTPError:
        return None


def well(url: str) -> bool:
    answer = get(url)
    return answer is not None and answer.status_code == 200


def report() -> dict[str, Any]:
    """The gateway's own."""
    answer = get(f"{URL}/readyz?verbose")
    assert answer is not None
    said: dict[str, Any] = answer.json()
    return said


def chat(text: str, tokens: int, url: str = URL, first: Callable[[], None] = lambda: None) -> tuple[str, str | None]:
    """A streamed chat, as OpenAI's client sees it: its text and why it ended. `first` is called at its first token."""
    with (
        openai.DefaultHttpxClient(trust_env=False, timeout=60.0) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        model = client.models.list().data[0].id
        said, why = "", None
        messages: Any = [{"role": "user", "content": text}]
        for chunk in client.chat.completions.create(
            model=model, messages=messages, max_tokens=tokens, temperature=0, stream=True
        ):
            if chunk.choices:
                if not said:
                    first()
                said += chunk.choices[0].delta.content or ""
                why = chunk.choices[0].finish_reason or why
        return said, why
