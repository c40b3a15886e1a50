"""API keys: who has none is turned away before anything is read or sent, and engines never see one."""

from pathlib import Path

import pytest

from gateway.settings import SettingsError
from tests.gateway.conftest import make_pair

BODY = {"model": "m", "prompt": "x", "max_tokens": 2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# of the team\nsk-one\n\n  sk-two  \n")
    return path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer sk-three"}, 401),
        ({"authorization": "sk-one"}, 401),
        ({"authorization": "Bearer # of the team"}, 401),
        ({"authorization": "Bearer sk-one"}, 200),
        ({"authorization": "bearer sk-two"}, 200),
        ({"x-api-key": "sk-one"}, 200),
        ({"x-api-key": "sk-three"}, 401),
    ],
)
async def test_only_keys_of_the_file_are_served(file: Path, headers: dict[str, str], status: int) -> None:
    async with make_pair(api_keys_file=str(file)) as pair:
        answer = await pair.http.post("/v1/completions", json=BODY, headers=headers)
        models = await pair.http.get("/v1/models", headers=headers)
        assert (answer.status_code, models.status_code) == (status, status)
        sent = [request.headers for double in (pair.prefill, pair.decode) for request in double.posts]
        assert len(sent) == (2 if status == 200 else 0)
        assert not any("authorization" in one or "x-api-key" in one for one in sent)
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            assert (await pair.http.get(path)).status_code == 200


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "sk-one sk-two\n", "sk-one policy sk-two\n"])
async def test_a_file_without_keys_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match="api_keys_file"):
        async with make_pair(api_keys_file=str(path)):
            pass
