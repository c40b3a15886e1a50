"""The fleet file: which models there are, which engines serve them, in which role and where.

One TOML file starts engines, tells the gateway what exists and describes a simulated fleet. It is strict: an unknown
key, a port used twice, a role without engines or a missing model is a `FleetError` that names the key and the mend.

    [gateway]                    # optional: settings of `baton serve`
    port = 8000

    [supervisor]                 # optional: how patient `baton engines up` is
    start_s = 3600

    [models.qwen]                # the table's name is the model's public name
    path = "Qwen/Qwen3-0.6B"     # folder or hub id, the same string for every engine of the model

    [[engines]]
    name = "p0"
    role = "prefill"             # prefill | decode | both
    gpus = [0]
    port = 8101                  # an engine that we start; one that already runs has `url` instead
"""

import tomllib
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engines.supervision import Supervision

LEASE_S = 30.0
"""vLLM's default `kv_lease_duration`: how long a prefill engine holds blocks nobody has fetched."""


DNS = "dns+"
"""How the URL of a name begins that stands for all its addresses: `dns+http://name:port`."""

ANY = "*"
"""A model of this name stands for whatever its engines say that they serve."""


class FleetError(ValueError):
    """The fleet file cannot be used; the message names the key and the mend."""


class Role(StrEnum):
    """What an engine is for. `BOTH` prefills and decodes (collocated)."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"

    @property
    def prefills(self) -> bool:
        return self is not Role.DECODE

    @property
    def decodes(self) -> bool:
        return self is not Role.PREFILL


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Strict):
    """One model and what every engine that serves it has in common."""

    name: str = ""
    path: str = Field("", description="folder or hub id given to vLLM; must be one string for all engines")
    tokenizer: str = Field("", description="folder or hub id of tokenizer and chat template, if not those of `path`")
    max_model_len: int | None = Field(None, gt=0, description="longest prompt + answer, tokens")
    block_size: int | None = Field(None, gt=0, description="tokens per KV block")
    lease_s: float = Field(LEASE_S, gt=0, description="how long a prefill engine holds blocks nobody has fetched")
    args: tuple[str, ...] = Field((), description="further vLLM arguments")
    env: dict[str, str] = Field({}, description="further environment of its engines")


class Engine(_Strict):
    """One engine: either `url` of one that runs already, or `port` of one that we start."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    role: Role
    model: str = ""
    url: str = ""
    host: str = Field("localhost", description="a name from [hosts]")
    port: int | None = Field(None, gt=0, lt=65536, description="HTTP port of an engine that we start")
    device: Literal["cuda", "cpu"] = "cuda"
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    profile: str = Field("", description="its assumed speed until it is seen: a profile's name, or a .toml file")
    cost: float = Field(1.0, gt=0, le=1000, description="what a second of it costs, against the others")
    drain: bool = Field(False, description="the gateway sends nothing new there; what runs there ends in peace")
    tp: int = Field(1, gt=0, description="tensor parallel size")
    pp: int = Field(1, gt=0, description="pipeline parallel size")
    dp: int = Field(1, gt=0, description="data parallel ranks behind one port; each is placed by itself")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    nixl_port: int | None = Field(None, gt=0, lt=65536, description="NIXL side channel; one port per TP and DP rank")
    events_port: int | None = Field(None, gt=0, lt=65536, description="KV events (PUB); one port per DP rank")
    replay_port: int | None = Field(None, gt=0, lt=65536, description="KV events (replay ROUTER); likewise")
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url.removeprefix(DNS))
        if parts.scheme not in ("http", "https", "unix") or not (parts.netloc or parts.scheme == "unix"):
            raise ValueError(
                "not a URL: give http://host:port, https://host:port, dns+http://name:port or unix:///path/to.sock"
            )
        if parts.scheme != "unix" and parts.path not in ("", "/"):
            raise ValueError(f"remove the path {parts.path!r}: the engine's root is wanted, without /v1")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _ours_or_theirs(self) -> Self:
        if bool(self.url) == bool(self.port):
            raise ValueError("give `url` for an engine that runs already, or `port` for one to be started (not both)")
        if self.gpus and len(self.gpus) % (self.tp * self.pp * self.dp):
            raise ValueError(
                f"gpus has {len(self.gpus)} entries, tp is {self.tp}, pp {self.pp}, dp {self.dp}: "
                "list tp x pp x dp GPUs"
            )
        return self

    @property
    def managed(self) -> bool:
        """True if `baton up` starts this engine."""
        return self.port is not None

    def ports(self) -> Iterator[tuple[str, int]]:
        """Each port that this engine binds, with the key it comes from; vLLM counts ranks up from the first."""
        ranks = {"port": 1, "events_port": self.dp, "replay_port": self.dp, "nixl_port": self.tp * self.dp}
        for key, count in ranks.items():
            if (port := getattr(self, key)) is not None:
                yield from ((key, port + rank) for rank in range(count))


class Host(_Strict):
    """A machine of the fleet."""

    address: str = Field("127.0.0.1", description="where the others reach it")
    ucx_tls: str = Field("", description="transports that KV may take (UCX_TLS), e.g. rc,cuda_copy,cuda_ipc or tcp")
    ucx_net_devices: str = Field("", description="its network devices (UCX_NET_DEVICES), e.g. mlx5_0:1,mlx5_1:1")


class Link(_Strict):
    """The network between two hosts, as the cost of moving KV over it."""

    a: str
    b: str
    gbps: float = Field(gt=0)
    latency_us: float = Field(0.0, ge=0)


class Fleet(_Strict):
    """What exists. `gateway` is kept as it stands for whoever runs the gateway."""

    models: dict[str, Model]
    engines: tuple[Engine, ...]
    hosts: dict[str, Host] = {"localhost": Host()}
    links: tuple[Link, ...] = ()
    gateway: dict[str, Any] = {}
    supervisor: Supervision = Supervision()

    @model_validator(mode="before")
    @classmethod
    def _names(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Give each model its table's name, and engines of a one-model fleet that model."""
        models = raw.get("models")
        if not isinstance(models, dict) or not models:
            raise ValueError('models: no model: add a table such as [models.qwen] with path = "Qwen/Qwen3-0.6B"')
        named = {}
        for name, table in models.items():
            if not isinstance(table, dict):
                raise ValueError(f"models.{name}: write it as a table: [models.{name}]")
            named[name] = {**table, "name": name, "path": table.get("path") or name}
        engines = raw.get("engines")
        if not isinstance(engines, list | tuple) or not engines:
            raise ValueError("engines: no engine: add [[engines]] with name, role, and port or url")
        only = next(iter(named)) if len(named) == 1 else ""
        engines = [{**e, "model": e.get("model") or only} if isinstance(e, dict) else e for e in engines]
        hosts = raw.get("hosts")
        if isinstance(hosts, dict):
            hosts = {"localhost": {}, **hosts}
        return {**raw, "models": named, "engines": engines, **({"hosts": hosts} if hosts else {})}

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for name, times in Counter(e.name for e in self.engines).items():
            if times > 1:
                raise ValueError(f"engines: {times} engines are named {name!r}: give each its own name")
        bound: dict[tuple[str, int], str] = {}
        known: dict[str, str] = {}
        for engine in self.engines:
            if not engine.model:
                raise ValueError(
                    f"engines.{engine.name}.model: missing: say which of {', '.join(self.models)} it serves"
                )
            if engine.model not in self.models:
                raise ValueError(
                    f"engines.{engine.name}.model: {engine.model!r} is not in [models]: "
                    f"add [models.{engine.model}] or use one of {', '.join(self.models)}"
                )
            if engine.host not in self.hosts:
                raise ValueError(
                    f"engines.{engine.name}.host: {engine.host!r} is not in [hosts]: add [hosts.{engine.host}]"
                )
            for key, port in engine.ports():
                where = f"engines.{engine.name}.{key}"
                if other := bound.get((engine.host, port)):
                    raise ValueError(f"{where}: port {port} is taken by {other}: choose another")
                bound[engine.host, port] = where
            if (other := known.setdefault(self.url(engine), engine.name)) != engine.name:
                raise ValueError(f"engines.{engine.name}: {self.url(engine)} is engines.{other} already: give it once")
        for link in self.links:
            for host in (link.a, link.b):
                if host not in self.hosts:
                    raise ValueError(f"links: {host!r} is not in [hosts]: add [hosts.{host}]")
        for model in self.models:
            roles = {e.role for e in self.engines if e.model == model}
            if not roles:
                raise ValueError(f"models.{model}: no engine serves it: add [[engines]] with model = {model!r}")
            if Role.BOTH not in roles and roles != {Role.PREFILL, Role.DECODE}:
                missing = "decode" if Role.PREFILL in roles else "prefill"
                raise ValueError(
                    f"models.{model}: no engine with role {missing!r}: add one, "
                    'or give engines that do everything role = "both"'
                )
        return self

    @classmethod
    def nothing(cls) -> "Fleet":
        """No engine: all come from elsewhere."""
        return Fleet.model_construct(models={}, engines=())

    def url(self, engine: Engine) -> str:
        """Where the gateway reaches an engine."""
        return engine.url or f"http://{self.hosts[engine.host].address}:{engine.port}"

    def to_toml(self) -> str:
        """The fleet as a file that `load` reads back to an equal fleet."""
        raw = self.model_dump(mode="json", exclude_defaults=True)
        for table in raw["models"].values():
            table.pop("name", None)
        return tomli_w.dumps(raw)

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str = "fleet") -> Self:
        """Check a parsed fleet. Raises `FleetError`."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise FleetError(
                f"{where}: " + "; ".join(_mend(raw, e["loc"], e["msg"], e["type"]) for e in error.errors())
            ) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a fleet file. Raises `FleetError`."""
        try:
            raw = tomllib.loads(path.read_text())
        except OSError as error:
            raise FleetError(f"{path}: {error.strerror or error}: give an existing fleet file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FleetError(f"{path}: not TOML: {error}") from None
        return cls.parse(raw, str(path))


_TABLES: dict[str, type[BaseModel]] = {
    "models": Model,
    "engines": Engine,
    "hosts": Host,
    "links": Link,
    "supervisor": Supervision,
}


def _mend(raw: dict[str, Any], loc: tuple[int | str, ...], message: str, kind: str) -> str:
    """One validation error as `key: what is wrong: what to do`."""
    parts: list[str] = []
    for depth, part in enumerate(loc):
        if isinstance(part, int) and depth == 1 and loc[0] == "engines":
            table = raw["engines"][part]
            part = table.get("name", part) if isinstance(table, dict) else part
        parts.append(str(part))
    key = ".".join(parts)
    message = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = _TABLES[str(loc[0])] if len(loc) > 1 and str(loc[0]) in _TABLES else Fleet
        names = ", ".join(name for name in known.model_fields if not (known is Model and name == "name"))
        message = f"unknown key: remove it or use one of {names}"
    elif kind == "missing":
        message = "missing: add it"
    return f"{key}: {message}" if key else message
