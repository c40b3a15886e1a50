"""Prompts that begin alike: how many come, and how much they have in common.

What an engine computes of that for one of them it has for all that follow, so a copy of a hot prefix costs each of them
only its share.
"""

HORIZON = 256
"""Arrivals over which prompts that begin alike are counted, and a copy is paid off."""

WINDOW = 32
"""Prompts of which the least is taken that any engine had cached: what all of them have in common."""

_MOST = 4096


class _Seen:
    __slots__ = ("common", "count", "last", "least", "left")

    def __init__(self, last: int) -> None:
        self.last = last
        self.count = 0.0
        self.common = 0.0
        """Of the last whole window."""
        self.least = 0.0
        """Of the present one."""
        self.left = WINDOW


class Alike:
    """Follows prompts by `Request.prefix`."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._arrivals = 0

    def arrived(self, prefix: int, cached: int) -> tuple[float, float]:
        """A prompt of which an engine has `cached` tokens. Returns how many like it come within the horizon, at least
        1, and how many tokens they have in common.
        """
        if not prefix:
            return 1.0, 0.0
        self._arrivals += 1
        seen = self._seen.get(prefix)
        if seen is None:
            if len(self._seen) >= _MOST:
                self._seen = {key: one for key, one in self._seen.items() if one.last > self._arrivals - HORIZON}
            seen = self._seen[prefix] = _Seen(self._arrivals)
        seen.count = 1.0 + seen.count * (1.0 - 1.0 / HORIZON) ** (self._arrivals - seen.last)
        seen.last = self._arrivals
        seen.least = cached if seen.left == WINDOW else min(seen.least, cached)
        seen.left -= 1
        common = min(seen.common, seen.least)
        if not seen.left:
            seen.common, seen.left = seen.least, WINDOW
        return seen.count, common
