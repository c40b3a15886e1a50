"""What `baton index` shows of an index: sizes, and which prefixes are held where. No text, no tokens."""

from collections.abc import Mapping

import msgspec


class Stats(msgspec.Struct, frozen=True):
    """Sizes of an index."""

    nodes: int
    """Runs of blocks, the nodes of the radix tree."""
    blocks: int
    """Different blocks that some engine holds."""
    pairs: int
    """Blocks counted once for each holder."""
    holders: Mapping[str, int]
    """Blocks of each holder."""
    bytes: int = 0
    """Memory that the index takes in its server, if that is known."""


class Run(msgspec.Struct, frozen=True):
    """One node: blocks that follow each other."""

    head: str
    """Hash of its first block, hexadecimal."""
    blocks: int
    holders: Mapping[str, int]
    """Blocks of the run that each holder has."""

    @property
    def weight(self) -> int:
        """Resident blocks of this run, over all holders."""
        return sum(self.holders.values())


def name(engine: str, rank: int, tier: str) -> str:
    """A holder in words; the URL of a rank that is an engine of its own says which it is."""
    told = rank and not engine.endswith(f"#rank={rank}")
    return engine + (f" rank {rank}" if told else "") + ("" if tier == "gpu" else f" ({tier})")
