"""What one request adds to the load of its engines, taken back exactly once."""

import time
from types import TracebackType
from typing import Self

from gateway.fleet.engine import Engine


class Booking:
    """Load of one placement. Made before the next `await`, so that a burst does not herd.

    The decode engine is booked from the start: it will hold the prompt. Where it prefills by itself, or once the
    prefill engine is done, `prefilled()` takes the prompt off the prefill load. Leaving the `with` block gives back
    what is left.
    """

    __slots__ = (
        "_decode",
        "_new",
        "_prefill",
        "_prefilling",
        "_released",
        "_tokens",
        "_us",
        "alone",
        "beside",
        "waits_s",
    )

    def __init__(self, prefill: Engine | None, decode: Engine, new: int, tokens: int) -> None:
        """`new` of the prompt's `tokens` are not cached on the engine that prefills."""
        self._prefill = prefill or decode
        self._decode = decode
        self._new = new
        self._tokens = tokens
        self._us = int(1e6 * self._prefill.pace.base.prefill_s(new, tokens - new))
        now_s = time.monotonic()
        self.waits_s = self._prefill.waits_s(now_s)
        """Prefill that was booked before it on the engine that prefills, by all gateways, and not done yet; seconds."""
        self.alone = not self._prefill.booked_s
        """Whether it met no other prefill there; once it is done, nor did another come before it was."""
        self.beside = self._prefill.decoding
        """Requests that the engine that prefills was decoding."""
        self._prefilling = True
        self._released = False
        self._prefill.backlog.join(self, self.work_s, now_s + self._prefill.pace.overhead_s)
        self._prefill.prefill_requests += 1
        self._prefill.prefill_tokens += new
        self._prefill.prefill_us += self._us
        decode.decode_requests += 1
        decode.decode_tokens += tokens
        if self._prefill is not decode:
            decode.coming_requests += 1
            decode.coming_tokens += tokens

    @property
    def work_s(self) -> float:
        """Seconds of prefill that it brings."""
        return self._us * 1e-6

    def prefilled(self) -> None:
        """The prompt is computed: whoever prefilled is free of it."""
        if self._prefilling:
            self._prefilling = False
            self._prefill.prefill_requests -= 1
            self._prefill.prefill_tokens -= self._new
            self._prefill.prefill_us -= self._us
            self.alone = self.alone and self._prefill.backlog.single
            self._prefill.backlog.leave(self, time.monotonic())
            if self._prefill is not self._decode:
                self._decode.coming_requests -= 1
                self._decode.coming_tokens -= self._tokens

    def release(self) -> None:
        """Give everything back. Safe to call twice."""
        if not self._released:
            self._released = True
            self.prefilled()
            self._decode.decode_requests -= 1
            self._decode.decode_tokens -= self._tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
