"""Policies that choose the decode engine first and the prefill engine after it, as all the known ones do.

A subclass scores an engine for each stage and is done:

    class FewestTokens(Staged):
        def prefilling(self, request, engine):
            return -engine.prefill_tokens

        def decoding(self, request, engine):
            return -engine.decode_requests

Where every engine does both there is one choice, by `collocated`. A decider may keep a prompt on its decode engine.
"""

import random
from collections.abc import Callable, Sequence

from policies.choose import top, without
from policies.contract import Engine, Fleet, Placement, Request
from policies.deciders import Always, Decider


class Staged:
    """The best decode engine, then the best prefill engine; ties at random. More is better in all scores."""

    reason = "best of each stage"

    def __init__(self, seed: int | None = None, decider: Decider | None = None) -> None:
        self.spread = random.Random(seed)
        self.decider = decider or Always()

    def look(self, request: Request, fleet: Fleet) -> None:
        """Called once before engines are scored: for what needs all of them."""

    def prefilling(self, request: Request, engine: Engine) -> float:
        """How well `engine` would prefill the request."""
        raise NotImplementedError("write prefilling(self, request, engine)")

    def decoding(self, request: Request, engine: Engine) -> float:
        """How well `engine` would decode the request."""
        raise NotImplementedError("write decoding(self, request, engine)")

    def collocated(self, request: Request, engine: Engine) -> float:
        """How well `engine` would do both."""
        return self.prefilling(request, engine)

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        """The engine to take, by name: one of the best."""
        return top(scores, self.spread)

    def place(self, request: Request, fleet: Fleet) -> Placement:
        self.look(request, fleet)
        if fleet.collocated:
            scores = _scores(self.collocated, request, fleet.engines)
            return Placement(decode=self.pick(request, fleet.engines, scores), reason=self.reason, scores=scores)
        decoders = fleet.decoders
        scores = _scores(self.decoding, request, decoders)
        decode = self.pick(request, decoders, scores)
        prefillers = () if request.whole else without(fleet.prefillers, decode)
        why = "whole" if request.whole else "" if prefillers else "no other engine prefills"
        if not why:
            chosen = next(engine for engine in decoders if engine.name == decode)
            why = self.decider.local(request, fleet, chosen)
        if why:
            return Placement(decode=decode, reason=f"{self.reason}, {why}", scores=scores)
        prefills = _scores(self.prefilling, request, prefillers)
        prefill = self.pick(request, prefillers, prefills)
        return Placement(prefill=prefill, decode=decode, reason=self.reason, scores={**prefills, **scores})


def _scores(score: Callable[[Request, Engine], float], request: Request, engines: Sequence[Engine]) -> dict[str, float]:
    return {engine.name: score(request, engine) for engine in engines}
