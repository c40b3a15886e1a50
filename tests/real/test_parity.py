"""Our reading of prompts against a real engine's own: the same ids for every shape and template, or none of ours."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from engines.fleet import Fleet, Role
from engines.keeper import Keeper
from engines.layout import on_cpu
from engines.supervisor import Supervisor
from engines.tiny_model import make_tiny_model
from gateway.fleet.engine import Engine
from gateway.prompt.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from gateway.prompt.probe import disagreement
from gateway.prompt.reader import Prompt, Reader
from gateway.prompt.remote import render
from tests.ports import fresh_ports
from tests.prompt import shapes
from tests.prompt.templates import TEMPLATES

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]

RENDERS = ("--enable-scale-out", "--trust-request-chat-template")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("parity") / "tiny-llama")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def judge(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """An engine that shows how it renders, with any template that a request brings."""
    ports = fresh_ports()
    model = on_cpu(folder, ports).models[folder.name].model_dump()
    alone = {"name": "judge", "role": "both", "port": next(ports), "device": "cpu", "args": RENDERS}
    fleet = Fleet.parse({"models": {folder.name: model}, "engines": [alone]})
    supervisor = Supervisor(folder)
    url = fleet.url(fleet.engines[0])
    try:
        await supervisor.ready(supervisor.add(Keeper(supervisor, fleet).specs().values(), patient=False))
        async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:
            yield http
    finally:
        await supervisor.stop()


def ours(reader: Reader, api: Api, body: dict[str, Any]) -> Prompt:
    return reader.read(api, {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()})


async def theirs(http: httpx.AsyncClient, api: Api, body: dict[str, Any]) -> list[int] | None:
    """The engine's ids; None if it refuses."""
    answer = await http.post(f"{api.path}/render", json=body)
    if answer.status_code != 200:
        assert answer.status_code < 500, answer.text
        return None
    rendered = answer.json()
    ids: list[int] = (rendered[0] if isinstance(rendered, list) else rendered)["token_ids"]
    return ids


def same(prompt: Prompt, ids: list[int]) -> bool:
    return prompt.ids == b"".join(token.to_bytes(4, "little") for token in ids)


@pytest.mark.parametrize("name", TEMPLATES)
async def test_chats_read_as_the_engine_reads_them(name: str, folder: Path, judge: httpx.AsyncClient) -> None:
    reader = Reader.load(folder, chat_template=TEMPLATES[name])
    told: Counter[str] = Counter()
    wrong = []
    for shape, body in shapes.CHATS.items():
        body = {"model": folder.name, **body}
        ids = await theirs(judge, CHAT, {**body, "chat_template": TEMPLATES[name]})
        prompt = ours(reader, CHAT, body)
        if ids is None:
            told["refused"] += 1
        elif prompt.ids is None:
            told[f"unread: {prompt.why}"] += 1
        elif same(prompt, ids):
            told["same"] += 1
        else:
            wrong.append(shape)
    assert not wrong, f"{name}: other ids for {wrong}"
    assert told["same"] >= 0.9 * (len(shapes.CHATS) - told["refused"]), told


async def test_completions_read_as_the_engine_reads_them(folder: Path, judge: httpx.AsyncClient) -> None:
    reader = Reader.load(folder)
    assert reader.kind == "fastokens"
    for shape, body in shapes.COMPLETIONS.items():
        body = {"model": folder.name, **body}
        ids = await theirs(judge, COMPLETIONS, body)
        prompt = ours(reader, COMPLETIONS, body)
        assert ids is None or same(prompt, ids), shape
        assert ids is None or prompt.ids is not None, shape


async def test_the_probe_trusts_this_folder_and_no_other(
    folder: Path, judge: httpx.AsyncClient, tmp_path: Path
) -> None:
    assert await disagreement(judge, folder.name, Reader.load(folder)) == ""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    changed = json.loads((tmp_path / "tokenizer.json").read_text())
    changed["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    assert await disagreement(judge, folder.name, Reader.load(tmp_path))
    assert await disagreement(judge, folder.name, Reader.load(folder, chat_template=TEMPLATES["plain"] + "."))


async def test_an_engine_renders_for_the_gateway(folder: Path, judge: httpx.AsyncClient) -> None:
    """Mode `render`: exact on every API, for models that are not read here."""
    engine = Engine("judge", str(judge.base_url).rstrip("/"), Role.BOTH, model=folder.name)
    said = msgspec.Raw(b'[{"role":"user","content":"Hi there"}]')
    name = msgspec.Raw(msgspec.json.encode(folder.name))
    right = Reader.load(folder).read(CHAT, {"messages": said})
    for api in (CHAT, RESPONSES, MESSAGES):
        fields = {"model": name, api.prompt: said, "max_tokens": msgspec.Raw(b"9")}
        assert await render(engine, api, fields, 30) == right.ids, api.name
    fields = {"model": name, "prompt": msgspec.Raw(b'"Hi there"')}
    assert await render(engine, COMPLETIONS, fields, 30) == Reader.load(folder).read(COMPLETIONS, fields).ids
    assert await render(engine, CHAT, {"model": name}, 30) is None
    engine.pool.close()


async def test_requests_at_once_are_read_alike(folder: Path, judge: httpx.AsyncClient) -> None:
    """The reader has caches; threads share it."""
    reader = Reader.load(folder)
    bodies = [{"model": folder.name, **body} for body in shapes.CHATS.values()]
    alone = [ours(reader, CHAT, body) for body in bodies]
    together = await asyncio.gather(*(asyncio.to_thread(ours, reader, CHAT, body) for body in bodies * 4))
    assert together == alone * 4
