"""What passes between a prefill and a decode engine: vLLM's NIXL connector in pull mode, as the gateway sees it.

Source: `distributed/kv_transfer/kv_connector/v1/nixl/` (`pull_scheduler.py`, `pull_worker.py`) of vLLM 0.32. Tokens are
never compared: a decode engine takes whatever the named blocks hold.
"""

import asyncio
import contextlib
from typing import Any

from engines.double.faults import Faults
from engines.double.leases import Leases
from engines.double.limits import Limits
from engines.double.pool import Block
from engines.double.sequence import Sequence
from engines.double.stats import Stats
from engines.double.timing import Timing
from engines.double.transfer import Peer, SideChannel, TransferError

_ADDRESS = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


class PullFailedError(Exception):
    """The blocks could not be fetched; the request fails with 500."""


class TooManyBlocksError(Exception):
    """More blocks are wanted than the prefill engine holds: an assertion in vLLM, which ends the process."""


def complete(params: dict[str, Any]) -> bool:
    """Whether the parameters say where the blocks are; without that the request waits for ever."""
    return all(key in params for key in _ADDRESS)


def wants_pull(sequence: Sequence) -> bool:
    """Whether the sequence's prompt was computed elsewhere and not yet fetched."""
    return bool(sequence.params and sequence.params.get("do_remote_prefill"))


def keeps(sequence: Sequence) -> bool:
    """Whether a decode engine will come for the sequence's blocks."""
    return bool(sequence.params and sequence.params.get("do_remote_decode"))


def offer(engine_id: str, channel: SideChannel, sequence: Sequence, blocks: list[Block]) -> dict[str, Any]:
    """The parameters that a prefill answer carries, in the real one's order."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[block.id for block in blocks]],
        "remote_engine_id": engine_id,
        "remote_request_id": sequence.id,
        "remote_host": channel.host,
        "remote_port": channel.port,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": sequence.tape.count,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": sequence.cached_tokens,
    }


def _peer(params: dict[str, Any]) -> Peer:
    return Peer(str(params["remote_host"]), int(params["remote_port"]), str(params["remote_engine_id"]))


async def pull(
    sequence: Sequence, missing: list[Block], limits: Limits, timing: Timing, faults: Faults, stats: Stats
) -> None:
    """Copy the remote request's last blocks into `missing`, then tell their owner.

    The blocks are read when the transfer's time is over. Raises `PullFailedError`, `TooManyBlocksError`.
    """
    params = sequence.params or {}
    groups = params["remote_block_ids"]
    remote = groups[0] if isinstance(groups, list) else None
    if not isinstance(remote, list) or len(missing) > len(remote):
        raise TooManyBlocksError
    started_s = asyncio.get_running_loop().time()
    size_bytes = len(missing) * limits.block_size * limits.kv_bytes_per_token
    try:
        async with _peer(params) as peer:
            await asyncio.sleep(timing.transfer_s(size_bytes) * faults.slow)
            contents = await peer.read(remote[-len(missing) :])
            await peer.done(params["remote_request_id"])
    except TransferError as error:
        raise PullFailedError(str(error)) from error
    for block, content in zip(missing, contents, strict=True):
        block.content = content
    stats.transfer_s.observe(asyncio.get_running_loop().time() - started_s)
    stats.transfer_bytes.observe(size_bytes)
    stats.blocks_pulled += len(missing)


async def refuse(params: dict[str, Any]) -> None:
    """Tell the owner of blocks that nobody will read them; if it cannot be told, its lease will end."""
    if complete(params):
        with contextlib.suppress(TransferError):
            async with _peer(params) as peer:
                await peer.done(params["remote_request_id"])


class Heart:
    """Extends the leases of sequences that wait on this engine, every sixth of the lease's length."""

    def __init__(self, leases: Leases, faults: Faults) -> None:
        """`leases`: how long they are."""
        self._leases = leases
        self._faults = faults
        self._waiting: dict[Sequence, dict[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None

    def tasks(self) -> list[asyncio.Task[None]]:
        return [self._task] if self._task else []

    def watch(self, sequence: Sequence) -> None:
        if wants_pull(sequence) and sequence.params and complete(sequence.params) and "tp_size" in sequence.params:
            self._waiting[sequence] = sequence.params
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._beat())

    def forget(self, sequence: Sequence) -> None:
        self._waiting.pop(sequence, None)

    async def _beat(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._leases.seconds / 6)
            if self._faults.mute_heartbeats:
                continue
            for params in list(self._waiting.values()):
                with contextlib.suppress(TransferError):
                    async with _peer(params) as peer:
                        await peer.beat([str(params["remote_request_id"])])
