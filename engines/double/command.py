"""`baton double`: engine doubles from the command line."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from engines.double.double import Double
from engines.double.folder import write_folder
from engines.double.limits import Limits
from engines.double.process import Role
from engines.double.timing import Timing
from engines.model.profile import UnknownProfile, load

CLOSE_S = 10.0
"""Ctrl-C ends them all within this time, whatever they are at."""


def double(
    prefill: Annotated[int, typer.Option(min=0, help="doubles that prefill")] = 1,
    decode: Annotated[int, typer.Option(min=0, help="doubles that decode")] = 1,
    both: Annotated[int, typer.Option(min=0, help="doubles that do both")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65000, help="first port; the others follow")] = 9000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="name of the model that they pretend to serve")] = "double",
    block_size: Annotated[int, typer.Option(min=1, help="tokens per KV block")] = 16,
    num_blocks: Annotated[int, typer.Option(min=2, help="KV blocks per double")] = 8192,
    max_model_len: Annotated[int, typer.Option(min=1, help="longest prompt + answer, tokens")] = 32768,
    lease_s: Annotated[float, typer.Option(min=0, help="how long blocks wait for a decode double")] = 30.0,
    prefill_ms_per_1k: Annotated[float, typer.Option(min=0, help="to prefill 1000 tokens, ms")] = 0.0,
    decode_ms: Annotated[float, typer.Option(min=0, help="per decode step, ms")] = 0.0,
    transfer_gbps: Annotated[float, typer.Option(min=0, help="KV transfer, Gbit/s; 0: no limit")] = 0.0,
    profile: Annotated[
        str, typer.Option(help="speed of an engine: a name or .toml file; NAME:4 is a quarter of it")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="of their ids; each life of an engine has ids of its own")] = 0,
    events: Annotated[bool, typer.Option(help="publish KV events over ZMQ")] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="write their tokenizer's folder there, for `serve`")] = None,
) -> None:
    """Start engine doubles: vLLM's HTTP surface without a model. Ends with Ctrl-C."""
    if prefill + decode + both == 0:
        raise typer.BadParameter("no double: give --prefill, --decode or --both a number above 0")
    wanted: dict[Role, int] = {"prefill": prefill, "decode": decode, "both": both}
    roles = [role for role, count in wanted.items() for _ in range(count)]
    try:
        limits = Limits(block_size=block_size, num_blocks=num_blocks, max_model_len=max_model_len)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    timing = Timing(
        prefill_b_s=prefill_ms_per_1k / 1e6,
        decode_a_s=decode_ms / 1e3,
        transfer_bytes_per_s=transfer_gbps * 1e9 / 8,
    )
    if profile:
        try:
            known = load(profile)
        except UnknownProfile as error:
            raise typer.BadParameter(str(error)) from None
        timing = Timing.of(known)
        limits = replace(limits, max_num_batched_tokens=known.chunk_tokens, kv_bytes_per_token=known.kv_bytes_per_token)
    doubles = [
        Double(
            role,
            f"{role[0]}{at}",
            model,
            host=host,
            port=port + at,
            events=events,
            lease_s=lease_s,
            seed=seed + at,
            timing=timing,
            limits=limits,
        )
        for at, role in enumerate(roles)
    ]
    try:
        if tokenizer is not None:
            write_folder(tokenizer)
        uvloop.run(_serve(doubles))
    except OSError as error:
        raise typer.BadParameter(str(error)) from None
    except TimeoutError:
        typer.echo(f"not all of them ended within {CLOSE_S:g} s", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped")


async def _serve(doubles: list[Double]) -> None:
    try:
        for one in doubles:
            await one.start()
            source = one.engine.publisher
            more = f"  events {source.endpoint}, replay {source.replay_endpoint}" if source else ""
            typer.echo(f"{one.role:8} {one.name:4} {one.url}{more}")
        flags = " ".join(f"--{one.role} {one.url}" for one in doubles)
        typer.echo(f"\nbaton serve {flags}\n\nCtrl-C ends them.")
        await asyncio.Event().wait()
    finally:
        async with asyncio.timeout(CLOSE_S):
            await asyncio.gather(*(one.close() for one in doubles))
