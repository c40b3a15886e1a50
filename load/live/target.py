"""What is behind a URL, a gateway or one engine, and how to ask it for exactly so many tokens."""

import random
import re
from collections.abc import Sequence
from typing import Self
from urllib.parse import urlsplit

import httpx
import msgspec

from engines.fleet import Role
from engines.surface import KV_BYTES_PULLED, PROMPT_TOKENS_BY_SOURCE, total
from load.client import Measured, RequestFailed, send
from load.live.asker import body
from load.live.prompts import IDS

_POLICY = re.compile(r'^baton_policy_info\{([^}]*\buse="live"[^}]*)\} 1', re.MULTILINE)


class Unreachable(Exception):
    """There is nothing at the URL that could be measured; the message says what to do."""


class Engine(msgspec.Struct, frozen=True):
    """One engine as the target shows it."""

    name: str
    role: Role
    url: str
    seen: bool
    """It answers from here."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or self.name


class Target(msgspec.Struct, frozen=True):
    """A gateway with its engines, or one engine."""

    url: str
    model: str
    engines: tuple[Engine, ...]
    gateway: bool
    longest: int
    """Tokens of prompt and answer together."""
    block_tokens: int
    kv_tokens: int
    """That fit into one engine; 0: not said."""
    policy: str
    """The gateway's; empty if it does not say."""

    @classmethod
    async def find(cls, http: httpx.AsyncClient, url: str, model: str | None = None) -> Self:
        """Look at a URL. Raises `Unreachable`."""
        url = url.rstrip("/")
        try:
            answer = await http.get(f"{url}/v1/models")
            if answer.status_code == 401:
                raise Unreachable(f"{url}: it wants a key: give one that it knows with --api-key")
            listed = answer.raise_for_status().json()["data"]
            ready = await http.get(f"{url}/readyz?verbose")
            metrics = (await http.get(f"{url}/metrics")).text
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
            said = f"{error or type(error).__name__}"
            raise Unreachable(f"{url}: {said}: give the URL of a gateway or of an engine that runs") from None
        chosen = next((entry for entry in listed if model in (None, entry["id"])), None)
        if chosen is None:
            names = ", ".join(entry["id"] for entry in listed) or "none: no engine is up"
            raise Unreachable(f"{url} serves no model {model or ''}: there is {names}")
        gateway = ready.status_code in (200, 503) and "engines" in ready.text
        engines: tuple[Engine, ...] = (Engine("c0", Role.BOTH, url, True),)
        policy = ""
        if gateway:
            told = ready.json()["engines"]
            if down := [f"{e['name']} ({e['why']})" for e in told if e["state"] != "up"]:
                raise Unreachable(f"{url}: not all engines are up: {', '.join(down)}")
            own = [e for e in told if e["model"] in ("*", chosen["id"])]
            engines = tuple([Engine(e["name"], Role(e["role"]), e["url"], await _alive(http, e["url"])) for e in own])
            if live := _POLICY.search(metrics):
                policy = dict(re.findall(r'(\w+)="([^"]*)"', live[1])).get("policy", "")
        first = next((engine.url for engine in engines if engine.seen), url)
        config = {key: int(value) for key, value in _config(metrics if first == url else await _page(http, first))}
        size = config.get("block_size", 16)
        return cls(
            url=url,
            model=chosen["id"],
            engines=engines,
            gateway=gateway,
            longest=int(chosen.get("max_model_len") or 4096),
            block_tokens=size,
            kv_tokens=size * config.get("num_gpu_blocks", 0),
            policy=policy,
        )

    @property
    def split(self) -> bool:
        """Some engines only prefill."""
        return any(engine.role is Role.PREFILL for engine in self.engines)

    def one(self, prefills: bool) -> Engine:
        """An engine that prefills, or one that decodes. Raises `Unreachable` if there is none."""
        able = [e for e in self.engines if (e.role.prefills if prefills else e.role.decodes)]
        if not able:
            raise Unreachable(f"{self.url}: no engine {'prefills' if prefills else 'decodes'}")
        return next((engine for engine in able if engine.seen), able[0])

    async def ask(
        self, http: httpx.AsyncClient, prompt: Sequence[int], answer: int, url: str = "", **headers: str
    ) -> Measured:
        """Stream an answer of exactly so many tokens, from `url` if not from the target. Raises `RequestFailed`."""
        wanted = body(self.model, list(prompt), answer)
        measured = await send(http, f"{url or self.url}/v1/completions", wanted, headers)
        if not measured.arrivals:
            raise RequestFailed(f"{url or self.url}: its stream does not count tokens: vLLM 0.9 or newer is needed")
        return measured

    async def pulled(self, http: httpx.AsyncClient) -> tuple[float, float] | None:
        """Tokens and bytes of KV that the engines have fetched so far; None if one cannot be asked."""
        tokens = moved = 0.0
        for engine in self.engines:
            if not engine.seen:
                return None
            page = await _page(http, engine.url)
            tokens += total(page, PROMPT_TOKENS_BY_SOURCE, {"source": "external_kv_transfer"}) or 0.0
            moved += total(page, KV_BYTES_PULLED) or 0.0
        return tokens, moved


async def _page(http: httpx.AsyncClient, url: str) -> str:
    try:
        return (await http.get(f"{url}/metrics")).text
    except httpx.HTTPError:
        return ""


async def _alive(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/health", timeout=2)).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _config(page: str) -> list[tuple[str, str]]:
    line = next((text for text in page.splitlines() if text.startswith("vllm:cache_config_info{")), "")
    return re.findall(r'\b(block_size|num_gpu_blocks)="(\d+)"', line)


class Salt:
    """Prompts of random token ids that nobody has sent before."""

    def __init__(self, seed: int | None = None) -> None:
        self._chance = random.Random(seed)

    def ids(self, count: int) -> list[int]:
        return self._chance.choices(IDS, k=count)
