"""The command line and environment that an engine of the fleet file is started with."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.fleet import Engine, Fleet, FleetError
from engines.vllm import CPU_SITE, launch


def fleet(model: dict[str, Any] | None = None, **engine: Any) -> tuple[Fleet, Engine]:
    """A fleet and its first engine, p0."""
    p0 = {"name": "p0", "role": "both", "port": 8101, **engine}
    made = Fleet.parse({"models": {"m": {"path": "org/m", **(model or {})}}, "engines": [p0]})
    return made, made.engines[0]


def value(command: list[str], flag: str) -> str:
    """What follows `flag`."""
    return command[command.index(flag) + 1]


def test_says_where_and_what() -> None:
    command, _ = launch(*fleet({"block_size": 64, "max_model_len": 4096}, tp=2, gpu_memory_utilization=0.4))
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    wanted = {
        "--model": "org/m",
        "--served-model-name": "m",
        "--host": "127.0.0.1",
        "--port": "8101",
        "--block-size": "64",
        "--max-model-len": "4096",
        "--tensor-parallel-size": "2",
        "--gpu-memory-utilization": "0.4",
    }
    assert {flag: value(command, flag) for flag in wanted} == wanted
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-request-id-headers"} <= set(command)


def test_leaves_the_choice_to_vllm() -> None:
    command, _ = launch(*fleet())
    for flag in ("--block-size", "--max-model-len", "--tensor-parallel-size", "--gpu-memory-utilization"):
        assert flag not in command
    assert "--kv-transfer-config" not in command
    assert "--kv-events-config" not in command
    assert "--enforce-eager" not in command


@pytest.mark.parametrize(
    ("role", "kv_role"), [("prefill", "kv_producer"), ("decode", "kv_consumer"), ("both", "kv_both")]
)
def test_transfer(role: str, kv_role: str) -> None:
    other = {"name": "x", "role": "both", "port": 1}
    raw = {
        "models": {"m": {"lease_s": 44.2}},
        "engines": [{"name": "e", "role": role, "port": 2, "nixl_port": 3}, other],
    }
    made = Fleet.parse(raw)
    command, env = launch(made, made.engines[0])
    assert json.loads(value(command, "--kv-transfer-config")) == {
        "kv_connector": "NixlConnector",
        "kv_role": kv_role,
        "kv_connector_extra_config": {"kv_lease_duration": 45},  # never shorter than the gateway believes
    }
    assert (env["VLLM_NIXL_SIDE_CHANNEL_HOST"], env["VLLM_NIXL_SIDE_CHANNEL_PORT"]) == ("127.0.0.1", "3")


def test_events() -> None:
    command, _ = launch(*fleet(events_port=5602, replay_port=5702))
    assert json.loads(value(command, "--kv-events-config")) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "topic": "kv-events",
        "endpoint": "tcp://*:5602",  # a concrete host would make vLLM connect instead of bind
        "replay_endpoint": "tcp://*:5702",
    }


def test_ranks() -> None:
    """One process with several ranks; vLLM gives each the port after that of the one before."""
    made, engine = fleet(dp=2, tp=2, gpus=[0, 1, 2, 3], events_port=5602, replay_port=5702, nixl_port=5800)
    command, env = launch(made, engine)
    assert value(command, "--data-parallel-size") == "2"
    assert json.loads(value(command, "--kv-events-config"))["endpoint"] == "tcp://*:5602"
    assert env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    bound = [8101, 5602, 5603, 5702, 5703, 5800, 5801, 5802, 5803]
    assert [port for _, port in engine.ports()] == bound
    assert "--data-parallel-size" not in launch(*fleet())[0]
    with pytest.raises(FleetError, match="tp is 2, pp 1, dp 2: list tp x pp x dp GPUs"):
        fleet(dp=2, tp=2, gpus=[0, 1])
    with pytest.raises(FleetError, match="port 5603 is taken"):
        fleet(dp=2, events_port=5602, replay_port=5603)


def test_on_gpu() -> None:
    _, env = launch(*fleet(gpus=[2, 3], tp=2))
    assert env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert env["PYTHONHASHSEED"] == "0"
    assert not {"UCX_TLS", "PYTHONPATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"} & set(env)


def test_on_cpu() -> None:
    command, env = launch(*fleet(device="cpu", nixl_port=5))
    assert "--enforce-eager" in command
    assert json.loads(value(command, "--kv-transfer-config"))["kv_buffer_device"] == "cpu"
    assert env["PYTHONPATH"] == CPU_SITE
    assert (env["UCX_TLS"], env["UCX_NET_DEVICES"]) == ("tcp,self", "lo")
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_own_pythonpath_is_kept() -> None:
    _, env = launch(*fleet(device="cpu"), "/a:/b")
    assert env["PYTHONPATH"].split(os.pathsep) == [CPU_SITE, "/a", "/b"]


def test_local_model_needs_no_hub(tmp_path: Path) -> None:
    _, env = launch(*fleet({"path": str(tmp_path)}))
    assert env["HF_HUB_OFFLINE"] == "1"


def test_the_file_has_the_last_word() -> None:
    model = {"args": ["--seed", "1"], "env": {"A": "model", "B": "model"}}
    command, env = launch(*fleet(model, args=["--seed", "2"], env={"A": "engine", "PYTHONHASHSEED": "7"}))
    assert command[-4:] == ["--seed", "1", "--seed", "2"]
    assert (env["A"], env["B"], env["PYTHONHASHSEED"]) == ("engine", "model", "7")
