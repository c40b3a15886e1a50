"""`baton serve`: the gateway in front of engines that run already."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from engines.checks import CannotStart as Taken
from engines.checks import must_be_free
from engines.fleet import ANY, LEASE_S, FleetError, Role
from engines.fleet import Fleet as FleetFile
from gateway.launch import Launch
from gateway.settings import LIVE, Effective, Settings, SettingsError, misspelt
from gateway.workers import CannotStart
from policies.registry import UnknownPolicy

log = logging.getLogger(__name__)


def serve(
    config: Annotated[
        Path | None, Option("--config", "-c", help="Fleet file (TOML): engines, models, [gateway].")
    ] = None,
    prefill: Annotated[list[str] | None, Option(help="URL of a prefill engine; may be repeated.")] = None,
    decode: Annotated[list[str] | None, Option(help="URL of a decode engine; may be repeated.")] = None,
    both: Annotated[list[str] | None, Option(help="URL of an engine that does both; may be repeated.")] = None,
    lease_s: Annotated[
        float | None, Option(help="The engines' kv_lease_duration, for engines given by URL. [default: 30]")
    ] = None,
    host: Annotated[str | None, Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, Option(help="Port to listen on. [default: 8000]")] = None,
    workers: Annotated[int | None, Option(help="Processes that share the port. [default: 1]")] = None,
    redis: Annotated[
        str | None, Option(help="Share index and load with other gateways: redis://host:port/0. [default: in memory]")
    ] = None,
    tokenizer: Annotated[
        str | None, Option(help="Folder or cached hub id with the model's tokenizer and template. [default: none]")
    ] = None,
    fleet_secret_file: Annotated[
        Path | None, Option(help="Engines may register themselves in that Redis, signed with this. [default: none]")
    ] = None,
    api_keys_file: Annotated[
        Path | None, Option(help="File with one API key per line. [default: everybody may ask]")
    ] = None,
    policy: Annotated[str | None, Option(help="Routing policy. [default: joint]")] = None,
    policies_folder: Annotated[
        Path | None, Option(help="Folder whose newest good .py file is the policy, watched. [default: none]")
    ] = None,
    shadow_policy: Annotated[
        str | None, Option(help="Asked beside the policy, counted, never obeyed. [default: none]")
    ] = None,
    shadow_ratio: Annotated[float | None, Option(help="Share of requests for which it is asked. [default: 1]")] = None,
    policy_header: Annotated[
        bool | None,
        Option("--policy-header/--no-policy-header", help="Every client may choose with x-baton-policy. [default: no]"),
    ] = None,
    otlp_endpoint: Annotated[str | None, Option(help="Send spans here (OTLP/HTTP). [default: none]")] = None,
    log_level: Annotated[str | None, Option(help="debug, info, warning or error. [default: info]")] = None,
    print_config: Annotated[
        bool, Option("--print-config", help="Show every setting and where it came from; then end.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API in front of prefill and decode engines.

    Engines come from a fleet file or from URLs:

        baton serve --prefill http://10.0.0.1:8000 --decode http://10.0.0.2:8000

    One with several data parallel ranks: http://10.0.0.2:8000#dp=2.

    Every setting can be given in the file's [gateway] table or as BATON_NAME in the environment too.
    """
    flags = {
        "host": host,
        "port": port,
        "workers": workers,
        "redis": redis,
        "tokenizer": tokenizer,
        "fleet_secret_file": str(fleet_secret_file) if fleet_secret_file is not None else None,
        "api_keys_file": str(api_keys_file) if api_keys_file is not None else None,
        "policy": policy,
        "policies_folder": str(policies_folder) if policies_folder is not None else None,
        "shadow_policy": shadow_policy,
        "shadow_ratio": shadow_ratio,
        "policy_header": policy_header,
        "otlp_endpoint": otlp_endpoint,
        "log_level": log_level,
    }
    urls = [
        (role, url)
        for role, given in ((Role.PREFILL, prefill), (Role.DECODE, decode), (Role.BOTH, both))
        for url in given or []
    ]
    try:
        if config is not None and (urls or lease_s is not None):
            raise FleetError("--config and engine URLs: give one of the two")
        if print_config and config is None:
            return _show(Effective.gather(flags, {}))
        file = None
        if config is None:
            file = _of_urls(urls, lease_s or LEASE_S, bool(Effective.gather(flags, {}).settings.fleet_secret_file))
        launch = Launch(config, file, flags)
        file, effective = launch.read()
        if print_config:
            return _show(effective)
        run(launch, file, effective.settings)
    except (FleetError, SettingsError, UnknownPolicy, CannotStart, Taken, OSError) as error:
        typer.secho(f"baton serve: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


def run(launch: Launch, file: FleetFile, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Exits with 1 if it could not start; raises `Taken` if the port is."""
    from gateway import lean  # noqa: F401  # before all that imports httpx
    from gateway.api.address import bind
    from gateway.server import log_to_stderr

    must_be_free(settings.host, settings.port, "--port: choose another")
    log_to_stderr(settings.log_level)
    for name, meant in misspelt(os.environ).items():
        log.warning("%s is set, but nothing reads it: did you mean %s?", name, meant)
    if settings.workers > 1:
        from gateway.workers.parent import run_workers

        run_workers(launch, file, settings)
    else:
        from gateway.app import App
        from gateway.server import Server, until_signalled

        with ExitStack() as stack:
            door = bind(settings)
            doors = [stack.enter_context(door)] if door is not None else []
            until_signalled(Server(App.of(launch, file, settings, doors=doors), settings))


def _of_urls(urls: list[tuple[Role, str]], lease_s: float, registered: bool) -> FleetFile:
    """The fleet file that these URLs would be; each engine is asked for its model. Raises `FleetError`."""
    if not urls and registered:
        return FleetFile.nothing()
    if not urls:
        raise FleetError(
            "no engines: give --prefill URL and --decode URL, --both URL, or --config FILE; or --redis URL and "
            "--fleet-secret-file FILE for engines that register themselves"
        )
    roles = [role for role, _ in urls]
    engines: list[dict[str, object]] = []
    for i, (role, given) in enumerate(urls):
        url, ranks, count = given.partition("#dp=")
        if ranks and not count.isdecimal():
            raise FleetError(f"{given}: write the number of data parallel ranks: {url}#dp=2")
        dp = int(count) if ranks else 1
        engines.append({"name": f"{role[0]}{roles[:i].count(role)}", "role": role, "url": url, "dp": dp})
    return FleetFile.parse({"models": {ANY: {"lease_s": lease_s}}, "engines": engines}, "engine URLs")


def _show(effective: Effective) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "value", "from", "meaning", caption="* follows a reload", caption_justify="left")
    for name, field in Settings.model_fields.items():
        live = "*" if name in LIVE else ""
        table.add_row(name + live, str(getattr(effective.settings, name)), effective.origin[name], field.description)
    Console().print(table)
