"""What an engine says of itself when it comes up: its block size, its KV events, when it started."""

import re

import httpx
import msgspec

from engines.surface import total

START_TIME = "process_start_time_seconds"
_CONFIG = re.compile(r"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
_BLOCK_SIZE = re.compile(r'\bblock_size="(\d+)"')
_BLOCKS = re.compile(r'\bnum_gpu_blocks="(\d+)"')


class Facts(msgspec.Struct, frozen=True):
    """Facts about one incarnation of an engine."""

    block_size: int | None = None
    """Tokens per KV block; None if its metrics do not say."""
    kv_tokens: int = 0
    """Tokens of KV that fit into it; 0 if its metrics do not say."""
    started_s: float = 0.0
    """When its process started (Unix time); another value is another incarnation. 0 if unknown."""


async def facts(http: httpx.AsyncClient, rank: int | None = None) -> Facts:
    """Ask an engine; one data-parallel rank of it, if that is wanted. Raises `httpx.HTTPError`."""
    page = (await http.get("/metrics")).text
    told = [one for one in _CONFIG.findall(page) if rank is None or f'engine="{rank}"' in one]
    config = told[0] if told else ""
    size, blocks = _BLOCK_SIZE.search(config), _BLOCKS.search(config)
    tokens = int(size[1]) * int(blocks[1]) if size and blocks else 0
    return Facts(int(size[1]) if size else None, tokens, total(page, START_TIME) or 0.0)
