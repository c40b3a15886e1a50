"""How fast one engine is: fitted from what the gateway sees of it, for policies.

Three things are told apart. The *shape* (seconds a token, a step, a sequence) is fitted slowly from clean observations:
prefills that had the engine to themselves, means of whole streams. *Lateness* follows every prefill at once: an
engine that takes five times as long as it should looks five times as slow within a few requests, and recovers so.
`mix` is what prefills beside running decodes take longer.

Engines of one kind (model, role, prior) learn to prefill together: what few prefills have said of one is drawn to what
all of them said. Alike engines that are believed unlike get unlike traffic, and one that looks slow by chance gets none
to correct it. Streams say enough of each engine by itself.
"""

import math
import time
from collections.abc import Callable

from msgspec.structs import replace

from gateway.fleet.line import Line
from policies.contract import ASSUMED, Speed

EVERY_S = 0.02
"""The shape is fitted no more often than this."""

QUICK, SLOWLY = 0.25, 0.05
"""Weight of the newest observation in lateness, and in mix."""

KIND_S = 1.0
"""What its kind has learnt meanwhile is taken over by an engine without prefills so often."""

ALIKE = 50
"""Prefills after which an engine's own count as much as those of its kind, and only those that shared no step say
something of its shape."""

CLEAN = 10
"""Prefills that met no decode, before those that did say something about `mix`."""

OVERHEAD_S = 0.02
"""What a prefill leg takes beside its work, until fitted."""

HALF_LIFE_S = 10.0
"""Of lateness that nothing new is known of."""

_MOST, _USUAL = math.log(20.0), math.log(1.5)


class Pace:
    """One engine's speed."""

    def __init__(
        self, prior: Speed = ASSUMED, clock: Callable[[], float] = time.monotonic, kind: "Pace | None" = None
    ) -> None:
        self.prior = prior
        """What is assumed until it is seen, and again after `reset`."""
        self.kind = kind
        """What all engines like it came to together."""
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Back to the prior: another process runs there now."""
        p = self.prior
        self._prefill = Line((OVERHEAD_S, p.token_s, p.context_s), (1.0, 1e3, 1e7))
        self._decode = Line((p.step_s, p.sequence_s, p.kv_s), (1.0, 10.0, 1e5))
        self._mix = p.mix
        self._late = 0.0
        self._clean = self._fits = 0
        self._seen_s = self._published_s = 0.0
        self._fitted_s = 0.0
        self._shape: tuple[float, ...] = (OVERHEAD_S, p.token_s, p.context_s)
        self.error = {"prefill": 0.0, "decode": 0.0}
        """How far the last predictions were off, as a share: 0.1 is ten percent either way; decaying mean."""
        self.base = p
        """Without lateness: what bookings are counted in."""
        self.speed = p
        """As policies see it."""

    @property
    def overhead_s(self) -> float:
        """What a prefill leg takes beside its work: mostly the way there."""
        return self._shape[0]

    @property
    def lateness(self) -> float:
        """How many times longer than fitted prefills take now; 1 within what is usual."""
        return math.exp(self._late) if abs(self._late) > _USUAL else 1.0

    def rest(self) -> None:
        """Time passes: lateness that nobody saw for a while is believed less, so that the engine is tried again."""
        if self._late and (now := self._clock()) > self._seen_s + 1.0:
            self._late *= 0.5 ** ((now - self._seen_s) / HALF_LIFE_S)
            self._seen_s = now
            self._publish()
        elif self.kind is not None and self.kind._published_s > self._published_s + KIND_S:
            self._publish()

    def prefilled(self, new: int, cached: int, waited_s: float, took_s: float, beside: int, alone: bool) -> None:
        """A prefill of `new` tokens after `cached` ones took `took_s`, beside as many decodes.

        `waited_s` of others were to be done before it; they pass while it is on its way. `alone`: it met none, nor did
        one come before it was done.
        """
        mix = self.base.mix if beside else 1.0
        x = (1.0, new * mix, new * (cached + new / 2.0) * mix)
        overhead_s, token_s, context_s = self._shape
        work_s = token_s * x[1] + context_s * x[2] + max(0.0, waited_s * mix - overhead_s)
        self._missed("prefill", took_s, overhead_s + work_s * self.lateness)
        if work_s > overhead_s:  # else it tells of the overhead alone
            ratio = max(took_s - overhead_s, 1e-4) / work_s
            self._seen_s = self._clock()
            self._late += QUICK * (min(max(math.log(ratio), -_MOST), _MOST) - self._late)
            if beside and alone and self._clean >= CLEAN:
                self._mix += SLOWLY * (min(max(mix * ratio, 1.0), 3.0) - mix)
        now = self._clock()
        if (alone or (not waited_s and self._fits < ALIKE)) and now > self._fitted_s + EVERY_S:
            self._fitted_s = now
            self._clean += not beside
            self._fits += 1
            self._prefill.learn(x, took_s)
            if self.kind is not None and self.lateness == 1.0:
                self.kind.prefilled(new, cached, 0.0, took_s, beside, True)
        if now > self._published_s + EVERY_S:
            self._publish()

    def streamed(self, batch: int, kv_tokens: int, gap_s: float, stalled_s: float = 0.0) -> None:
        """A stream had this mean time between its tokens while so many sequences decoded.

        `stalled_s` of it the engine prefilled; at most the half is believed, for it is foretold.
        """
        gap_s -= min(stalled_s * self.base.mix, 0.5 * gap_s)
        x = (1.0, float(batch), float(kv_tokens))
        self._missed("decode", gap_s, self._decode.expect(x))
        now = self._clock()
        if now > self._fitted_s + EVERY_S:
            self._fitted_s = now
            self._decode.learn(x, gap_s)
            self._publish()

    def _missed(self, kind: str, was_s: float, expected_s: float) -> None:
        off = abs(math.log(max(was_s, 1e-6) / max(expected_s, 1e-6)))
        self.error[kind] += SLOWLY * (min(off, _MOST) - self.error[kind])

    def _publish(self) -> None:
        self._published_s = self._clock()
        shape, mix = self._prefill.weights, self._mix
        if (kind := self.kind) is not None:
            own = self._fits / (self._fits + ALIKE)
            shape = _between(shape, kind._prefill.weights, own)
            mix = own * mix + (1.0 - own) * kind._mix
        self._shape = shape
        _, token_s, context_s = shape
        step_s, sequence_s, kv_s = self._decode.weights
        self.base = Speed(
            token_s=token_s,
            context_s=context_s,
            step_s=step_s,
            sequence_s=sequence_s,
            kv_s=kv_s,
            mix=mix,
            leg_s=0.0,
            join_s=self.prior.join_s,
        )
        late = self.lateness
        self.speed = (
            replace(self.base, token_s=token_s * late, context_s=context_s * late) if late != 1.0 else self.base
        )


def _between(own: tuple[float, ...], others: tuple[float, ...], share: float) -> tuple[float, ...]:
    """`share` of one's own, the rest of the others'."""
    return tuple([share * mine + (1.0 - share) * theirs for mine, theirs in zip(own, others, strict=True)])
