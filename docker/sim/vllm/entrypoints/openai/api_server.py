"""An engine double behind vLLM's command line: a supervisor whose PYTHONPATH leads here starts doubles for engines.

What shapes the surface is obeyed: addresses, model name, sizes, KV role and lease, KV events. The rest is ignored.
DOUBLE_PROFILE names the engine profile whose time it keeps; without one it answers as fast as it can. DOUBLE_FAULTS,
a JSON object, says what is wrong with it from the beginning.
"""

import argparse
import asyncio
import json
import os
import signal
import sys

from engines.double.double import Double
from engines.double.limits import Limits
from engines.double.process import Role
from engines.double.timing import Timing
from engines.model.profile import load

ROLES: dict[str, Role] = {"kv_producer": "prefill", "kv_consumer": "decode", "kv_both": "both"}


def port_of(endpoint: str | None) -> int | None:
    """The port of `tcp://*:5557`."""
    return int(endpoint.rpartition(":")[2]) if endpoint else None


def made(arguments: list[str]) -> Double:
    """The double that a vLLM server with these arguments would be."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=32768)
    parser.add_argument("--kv-transfer-config", type=json.loads, default={})
    parser.add_argument("--kv-events-config", type=json.loads, default={})
    given, _ = parser.parse_known_args(arguments)
    events, transfer = given.kv_events_config, given.kv_transfer_config
    profile = os.environ.get("DOUBLE_PROFILE")
    double = Double(
        ROLES[transfer.get("kv_role", "kv_both")],
        f"{given.served_model_name}-{given.port}",
        given.served_model_name,
        host=given.host,
        port=given.port,
        nixl_port=int(os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "0")),
        events_port=port_of(events.get("endpoint")),
        replay_port=port_of(events.get("replay_endpoint")),
        lease_s=float(transfer.get("kv_connector_extra_config", {}).get("kv_lease_duration", 30)),
        timing=Timing.of(load(profile)) if profile else None,
        limits=Limits(
            block_size=given.block_size,
            max_model_len=given.max_model_len,
            num_blocks=8192 + given.max_model_len // given.block_size,
        ),
    )
    double.faults.set(**json.loads(os.environ.get("DOUBLE_FAULTS", "{}")))
    return double


async def serve(double: Double) -> None:
    """Until SIGTERM or SIGINT; what runs may end first."""
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    async with double:
        sys.stderr.write(f"Starting vLLM server on {double.url}\n")
        await ended.wait()
        await double.idle()


if __name__ == "__main__":
    asyncio.run(serve(made(sys.argv[1:])))
