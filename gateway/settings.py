"""Every setting of the gateway: typed, documented, default given once.

Sources, strongest first: command line, environment (`BATON_` + name), table `[gateway]` of the fleet file, defaults.
"""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "BATON_"


class SettingsError(ValueError):
    """A setting cannot be used; the message names the key, where it came from and the mend."""


class Fallback(BaseModel):
    """The gateway of another fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    name: str = ""
    """In metrics and headers; by default the URL's host and port."""
    key_file: str = ""
    """File with the API key that it wants of us."""


class Settings(BaseModel):
    """Settings of `baton serve`. A name's unit is its ending."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, lt=65536, description="port to listen on")
    workers: int = Field(1, gt=0, description="processes behind the port, with one Redis (their own if none is named)")
    api_keys_file: str = Field(
        "", description="one API key per line, `policy` after those that may choose one; empty: all ask"
    )
    admin: str = Field("auto", description="admin listener: host:port, unix:///path; auto: our own socket; empty: off")
    admin_keys_file: str = Field("", description="keys for admin calls, one per line; for addresses others can reach")
    policy: str = Field("joint", description="routing policy: an installed name, module:Class or a .py file")

    ttft_slo_s: float = Field(2.0, gt=0, description="a first token later than this has missed its objective")
    itl_slo_s: float = Field(0.05, gt=0, description="the same for the mean pause between tokens")

    redis: str = Field("", description="index and load shared by all gateways: redis://host:port/0; empty: in memory")
    fleet_secret_file: str = Field("", description="engines may register in that Redis, signed with its secret")
    tokenizer: str = Field("", description="folder with tokenizer and chat template, for models that name none")
    prompt_mode: str = Field(
        "auto",
        pattern="^(auto|local|render|learned|off)$",
        description="where token ids come from; auto: what is proven; off: no index, placed by load alone",
    )
    send_ids: bool = Field(True, description="send token ids along with both legs to engines that take them")
    lookup_budget_s: float = Field(0.005, gt=0, description="until the index has answered; then by load alone")
    speculation_s: float = Field(2.0, gt=0, description="how long a placement counts as cached before events say so")
    learned_s: float = Field(300.0, gt=0, description="the same for engines without KV events")
    session_s: float = Field(1800.0, gt=0, description="how long a session remembers its engine")

    max_body_bytes: int = Field(32 << 20, gt=0, description="largest request body; a larger one is refused with 413")
    max_answer_bytes: int = Field(64 << 20, gt=0, description="largest answer that is not streamed")
    connections_per_engine: int = Field(1024, gt=0, description="open connections to one engine")

    connect_timeout_s: float = Field(2.0, gt=0, description="until an engine accepts a connection")
    body_timeout_s: float = Field(30.0, gt=0, description="between two pieces of a client's body")
    prefill_timeout_s: float = Field(120.0, gt=0, description="until a prefill engine has answered")
    first_byte_timeout_s: float = Field(300.0, gt=0, description="until the answering engine's first byte")
    idle_timeout_s: float = Field(120.0, gt=0, description="between two pieces of an engine's answer")
    request_timeout_s: float = Field(3600.0, gt=0, description="until a request has ended, whatever it waits for")
    client_timeout_s: float = Field(120.0, gt=0, description="until a client that reads no more is given up")
    fallback: tuple[Fallback, ...] = Field(
        (), description="gateways of other fleets (url, name, key_file) for what no engine here can serve"
    )
    engine_wait_s: float = Field(5.0, ge=0, description="how long a request waits while no engine can serve it")
    drain_s: float = Field(30.0, gt=0, description="how long requests may go on after SIGTERM, or on a removed engine")
    notice_s: float = Field(
        5.0, ge=0, description="how long new requests are taken after SIGTERM where a balancer asks for readiness"
    )

    attempts: int = Field(3, gt=0, description="how often one request is placed, the first time included")
    migrations: int = Field(3, ge=0, description="how often a stream may go on at another engine when its own dies")
    retry_share: float = Field(0.2, ge=0, description="retries may be this share of the requests of the last 10 s")
    retry_floor: int = Field(50, ge=0, description="retries in 10 s that are allowed whatever the traffic")
    refuse_saturated: bool = Field(
        False, description="refuse with 429 what no engine can serve in time or has room for, as the policy says"
    )
    require_prefill: bool = Field(
        False, description="refuse with 503 while no prefill engine is up, instead of prefilling on decode engines"
    )
    lease_margin_s: float = Field(
        5.0, ge=0, description="transfer parameters are not used in this last part of the prefill engine's lease"
    )

    health_interval_s: float = Field(1.0, gt=0, description="between two health checks of an engine")
    health_timeout_s: float = Field(5.0, gt=0, description="until an engine has answered a health check")
    vitals_interval_s: float = Field(10.0, gt=0, description="between two looks at an engine's own metrics")
    stall_s: float = Field(30.0, gt=0, description="an engine with requests and no sign of work for so long is probed")
    probe_timeout_s: float = Field(10.0, gt=0, description="until a probed engine has given a token; then it is down")
    eject_failures: int = Field(5, gt=0, description="failures in a row after which an engine rests from a leg")
    eject_s: float = Field(5.0, gt=0, description="how long it rests the first time; twice as long each time after")
    eject_most: float = Field(0.5, ge=0, lt=1, description="share of a role's engines that may rest; never all")
    eject_slow: float = Field(8.0, gt=1, description="so many times slower than the others of its role is a failure")
    drift_alarm_s: float = Field(30.0, gt=0, description="until requests that nobody knows of on an engine alarm")

    policies_folder: str = Field("", description="folder whose newest good .py file is the policy; empty: none")
    policy_budget_ms: float = Field(5.0, gt=0, description="a decision that takes longer is counted as a failure")
    policy_header: bool = Field(False, description="every client may choose a built-in policy with `x-baton-policy`")
    shadow_policy: str = Field("", description="policy that is asked beside the live one and never obeyed; empty: none")
    shadow_ratio: float = Field(1.0, ge=0, le=1, description="share of requests for which it is asked")

    otlp_endpoint: str = Field("", description="OTLP/HTTP endpoint for spans, e.g. http://localhost:4318; empty: none")
    trace_ratio: float = Field(1.0, ge=0, le=1, description="share of requests that start a trace")
    record_file: str = Field("", description="requests are recorded there for `baton replay`, no text; empty: nowhere")
    record_max_bytes: int = Field(256 << 20, gt=0, description="of that file; then nothing more is recorded")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")


LIVE = frozenset(
    """
    speculation_s learned_s session_s max_body_bytes max_answer_bytes body_timeout_s prefill_timeout_s
    first_byte_timeout_s idle_timeout_s engine_wait_s drain_s notice_s attempts lease_margin_s
    health_interval_s health_timeout_s vitals_interval_s stall_s probe_timeout_s eject_most eject_slow drift_alarm_s
    request_timeout_s client_timeout_s migrations require_prefill refuse_saturated api_keys_file log_level
    """.split()
)
"""Settings that a reload changes while requests run; all others need a restart."""


def _wrong(loc: tuple[int | str, ...], origin: dict[str, str], message: str, given: object) -> str:
    """One value that cannot be used; it may be within a list of tables."""
    within = "".join(f".{part}" for part in loc[1:])
    return f"{origin[str(loc[0])]}{within}: {message}, got {given!r}"


def misspelt(environment: Iterable[str]) -> dict[str, str]:
    """Variables that no setting reads, with the one that each seems to mean."""
    fields = [PREFIX + name.upper() for name in Settings.model_fields]
    strangers = {name for name in map(str.upper, environment) if name.startswith(PREFIX)} - set(fields)
    found = {name: get_close_matches(name, fields, n=1, cutoff=0.85) for name in sorted(strangers)}
    return {name: close[0] for name, close in found.items() if close}


class Effective(NamedTuple):
    """Settings as they stand, and where each came from."""

    settings: Settings
    origin: dict[str, str]

    @classmethod
    def gather(cls, flags: dict[str, Any], table: dict[str, Any], file: str = "fleet file") -> Self:
        """Merge flags (None: not given), the environment and the `[gateway]` table. Raises `SettingsError`."""
        flags = {name: value for name, value in flags.items() if value is not None}
        for name in table:
            if name not in Settings.model_fields:
                known = ", ".join(Settings.model_fields)
                raise SettingsError(f"{file}: gateway.{name}: unknown key: remove it or use one of {known}")

        class Layers(BaseSettings, Settings):
            model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[Any, ...]:
                return init_settings, env_settings, lambda: table

        environment = {key.upper() for key in os.environ}
        origin = {}
        for name in Settings.model_fields:
            if name in flags:
                origin[name] = f"--{name.replace('_', '-')}"
            elif PREFIX + name.upper() in environment:
                origin[name] = PREFIX + name.upper()
            else:
                origin[name] = f"{file} gateway.{name}" if name in table else "default"
        try:
            layers = Layers(**flags)
        except ValidationError as error:
            wrong = (_wrong(e["loc"], origin, e["msg"], e["input"]) for e in error.errors())
            raise SettingsError("; ".join(wrong)) from None
        return cls(Settings.model_validate(layers.model_dump()), origin)
