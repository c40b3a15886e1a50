"""`baton fleet`: engines of a running gateway, drained, removed and added while it serves."""

import json
import os
import stat
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from engines import sheet
from engines.fleet import Role
from gateway.api.address import AUTO, url

app = typer.Typer(help="Look after the engines of a running gateway.", no_args_is_help=True, rich_markup_mode=None)

Where = Annotated[
    str,
    Option("--admin", envvar="BATON_ADMIN", help="Where it is asked: unix:///path, host:port, or auto: by its port."),
]
Port = Annotated[int, Option("--port", envvar="BATON_PORT", help="The gateway's public port, for `auto`.")]
Key = Annotated[str, Option("--key", envvar="BATON_ADMIN_KEY", help="Admin key, where one is asked for.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
Name = Annotated[str, Argument(help="Name of the engine.")]


@app.command("list")
def list_(where: Where = AUTO, port: Port = 8000, key: Key = "", as_json: AsJson = False) -> None:
    """Every engine: where it is, whether it takes requests and why not, what is in flight there."""
    _show(_ask("GET", "/fleet", where, port, key), as_json)


@app.command()
def drain(name: Name, where: Where = AUTO, port: Port = 8000, key: Key = "", as_json: AsJson = False) -> None:
    """Send nothing new to an engine; what runs there ends in peace, and it stays in the fleet."""
    _show(_ask("POST", f"/fleet/{name}/drain", where, port, key), as_json)


@app.command()
def resume(name: Name, where: Where = AUTO, port: Port = 8000, key: Key = "", as_json: AsJson = False) -> None:
    """Send requests to a drained or removed engine again."""
    _show(_ask("POST", f"/fleet/{name}/resume", where, port, key), as_json)


@app.command()
def remove(name: Name, where: Where = AUTO, port: Port = 8000, key: Key = "", as_json: AsJson = False) -> None:
    """Drain an engine, then forget it; `resume` takes it back. For good, take it out of the fleet file."""
    _show(_ask("DELETE", f"/fleet/{name}", where, port, key), as_json)


@app.command()
def add(
    engine: Annotated[str, Argument(metavar="URL", help="Where the engine is.")],
    role: Annotated[Role, Option(help="What it is for.")],
    name: Annotated[str, Option(help="Its name. [default: the next one of its role]")] = "",
    model: Annotated[str, Option(help="The model it must serve. [default: whatever it serves]")] = "",
    host: Annotated[str, Option(help="Its host, as the fleet file names it.")] = "localhost",
    lease_s: Annotated[float, Option(help="Its kv_lease_duration.")] = 30.0,
    where: Where = AUTO,
    port: Port = 8000,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Add an engine, until the gateway ends. For good, write it into the fleet file."""
    body = {"url": engine, "role": role.value, "name": name, "model": model, "host": host, "lease_s": lease_s}
    _show(_ask("POST", "/fleet", where, port, key, body), as_json)


@app.command()
def reload(where: Where = AUTO, port: Port = 8000, key: Key = "", as_json: AsJson = False) -> None:
    """Read fleet file, settings and API keys again; says what changed. Exits with 1 if they were refused."""
    done = _ask("POST", "/reload", where, port, key)
    if as_json:
        typer.echo(json.dumps(done))
        return
    typer.echo(f"fleet: {done['fleet']}")
    for setting, value in done["settings"].items():
        typer.echo(f"{setting} = {value}")
    typer.echo(f"API keys: {done['keys'] or 'none are asked for'}")
    if done["restart"]:
        typer.secho(f"in force after a restart only: {', '.join(done['restart'])}", fg="yellow")


@app.command()
def config(where: Where = AUTO, port: Port = 8000, key: Key = "", as_json: AsJson = False) -> None:
    """Every setting as it is now."""
    found = _ask("GET", "/config", where, port, key)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("setting", "value", "from", box=box.SIMPLE_HEAD, caption="* follows a reload", caption_justify="left")
    for name, one in found["settings"].items():
        table.add_row(name + ("*" if one["live"] else ""), str(one["value"]), one["from"])
    Console().print(table)
    if found["refused"]:
        typer.secho(f"the last reload was refused: {found['refused']}", fg="red")


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = sheet.sheet(["engine", "role", "takes", "in flight", "from", "url"])
    notes = []
    for one in report["engines"]:
        takes = "draining" if one["draining"] else one["takes"] or one["state"]
        in_flight = f"{one['prefill_requests']} + {one['decode_requests']}"
        table.add_row(one["name"], one["role"], takes, in_flight, one["source"], one["url"])
        if one["why"]:
            notes.append(f"{one['name']} is {one['state']}: {one['why']}")
        notes += [f"{one['name']} gets no {leg}: {why}" for leg, why in one["ejected"].items()]
    sheet.show(table, Console())
    for note in notes:
        typer.echo(note)
    for warning in [*report["missing"], *report["warnings"]]:
        typer.secho(warning, fg="yellow")


def _ask(method: str, path: str, where: str, port: int, key: str, body: Any = None) -> dict[str, Any]:
    address = url(where, port)
    try:
        with _client(address, key) as http:
            answer = http.request(method, path, json=body)
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        _fail(f"{address}: {error}: is a gateway running there? Name it by --port or --admin")
    if not answer.is_success:
        _fail(str(found.get("error", {}).get("message", found)))
    return found


def _client(address: str, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if not address.startswith("unix://"):
        return httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False)
    path = Path(address.removeprefix("unix://"))
    found = path.stat()
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{path} is not a socket of yours")
    transport = httpx.HTTPTransport(uds=str(path))
    return httpx.Client(transport=transport, base_url="http://gateway", headers=headers, timeout=60)


def _fail(text: str) -> Any:
    typer.secho(f"baton fleet: {text}", fg="red", err=True)
    raise typer.Exit(1)
