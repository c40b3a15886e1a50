"""What gateways believe the engines' caches to hold: told by events, at once or late, or guessed from placements."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence


class Sight:
    """Which engines hold a block: a bit for each, so that a prompt is looked up on all of them at once."""

    def __init__(self, engines: int, delay_s: float = 0.0) -> None:
        """Events count `delay_s` after they have happened."""
        self._all = (1 << engines) - 1
        self._delay_s = delay_s
        self._holders: dict[int, int] = {}
        self._late: deque[tuple[float, int, int, bool]] = deque()

    def changed(self, engine: int, name: int, came: bool, now_s: float) -> None:
        """An engine has stored or dropped a block."""
        if self._delay_s:
            self._late.append((now_s + self._delay_s, engine, name, came))
        else:
            self._note(engine, name, came)

    def _note(self, engine: int, name: int, came: bool) -> None:
        holders = self._holders
        if came:
            holders[name] = holders.get(name, 0) | 1 << engine
        elif left := holders.get(name, 0) & ~(1 << engine):
            holders[name] = left
        else:
            holders.pop(name, None)

    def leads(self, names: Sequence[int], now_s: float) -> Iterator[tuple[int, int]]:
        """Engines that hold the first names, and how many of them each."""
        late = self._late
        while late and late[0][0] <= now_s:
            self._note(*late.popleft()[1:])
        holders, mask = self._holders, self._all
        count = 0
        for name in names:
            having = mask & holders.get(name, 0)
            if having != mask:
                if count:
                    yield from _each(mask ^ having, count)
                if not having:
                    return
                mask = having
            count += 1
        if count:
            yield from _each(mask, count)


def _each(mask: int, count: int) -> Iterator[tuple[int, int]]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1, count
        mask ^= low


class Guess(Sight):
    """No events: what was sent to an engine is taken to be there until as much else was sent as it has room for."""

    def __init__(self, engines: int, blocks: int) -> None:
        super().__init__(engines)
        self._blocks = blocks
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(engines)]

    def changed(self, engine: int, name: int, came: bool, now_s: float) -> None:
        """Nobody tells."""

    def sent(self, engine: int, names: Sequence[int]) -> None:
        """A request with these blocks was placed there."""
        sent = self._sent[engine]
        for name in reversed(names):
            if name in sent:
                sent.move_to_end(name)
            else:
                sent[name] = None
                self._note(engine, name, True)
        while len(sent) > self._blocks:
            self._note(engine, sent.popitem(last=False)[0], False)
