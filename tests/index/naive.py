"""The index as one would write it on a blackboard: a set of blocks for each holder."""

from collections.abc import Sequence

from gateway.index.contract import Change, Holder, Stored


def blocks(hashes: bytes) -> list[bytes]:
    """Packed hashes, one by one."""
    return [hashes[at : at + 8] for at in range(0, len(hashes), 8)]


class Naive:
    """Holder -> what it holds."""

    def __init__(self) -> None:
        self.held: dict[Holder, set[bytes]] = {}

    def open(self, holder: Holder) -> None:
        self.held[holder] = set()

    def forget(self, holder: Holder) -> None:
        self.held.pop(holder, None)

    def apply(self, holder: Holder, changes: Sequence[Change]) -> bool:
        """False if a parent was unknown; what came before it is applied."""
        mine = self.held[holder]
        for change in changes:
            if isinstance(change, Stored):
                if change.parent is not None and change.parent not in mine:
                    return False
                mine |= set(blocks(change.hashes))
            else:
                mine -= set(blocks(change.hashes))
        return True

    def match(self, hashes: bytes) -> dict[Holder, int]:
        found = {}
        for holder, mine in self.held.items():
            depth = 0
            for block in blocks(hashes):
                if block not in mine:
                    break
                depth += 1
            if depth:
                found[holder] = depth
        return found
