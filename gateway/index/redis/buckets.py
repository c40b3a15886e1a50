"""Where guesses are kept in Redis: two hashes for each life, which take turns (`gateway/index/guesses.py`)."""

from gateway.index.redis import library
from gateway.index.redis.wire import bulk

SHORT_MS, LONG_MS = 8_000, 1_800_000
"""Lives of guesses: one ends when it says, at the latest with its bucket."""


class Buckets:
    """The two of one kind and shard; what commands say of them is packed once a turn."""

    def __init__(self, tag: bytes, kind: bytes, life_ms: int) -> None:
        self._name = tag + kind
        self._life_ms = life_ms
        self._life = bulk(b"%d" % (2 * life_ms))
        self._turn = -1
        self._both = self._head = b""

    def both(self, now_ms: float) -> bytes:
        """The names of the one before and of that of now, as arguments."""
        self._look(now_ms)
        return self._both

    def put(self, keys: list[bytes], engines: bytes, ttl_s: float, now_ms: float) -> bytes:
        """The command that says of all `keys` that these engines (four bytes each) will have them."""
        self._look(now_ms)
        ends = b"%d" % (now_ms + min(ttl_s * 1e3, self._life_ms))
        return b"*%d\r\n%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n$8\r\n%b\r\n" % (
            7 + len(keys),
            self._head,
            len(ends),
            ends,
            self._life,
            len(engines),
            engines,
            b"\r\n$8\r\n".join(keys),
        )

    def _look(self, now_ms: float) -> None:
        turn = int(now_ms // self._life_ms)
        if turn != self._turn:
            self._turn = turn
            now = self._name + b"%d" % turn
            self._both = bulk(self._name + b"%d" % (turn - 1), now)
            self._head = bulk(b"FCALL", library.function("guess"), b"1", now)
