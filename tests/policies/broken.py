"""Policies that are wrong, each in its own way, for the examination to find."""

import itertools
import os
import sys

from policies.contract import Fleet, Placement, Request
from policies.staged import Staged


class Raises:
    def place(self, request: Request, fleet: Fleet) -> Placement:
        raise KeyError("mine")


class Nobody:
    def place(self, request: Request, fleet: Fleet) -> Placement:
        return Placement(decode="nobody", reason="x")


class Splits:
    """Splits even what must stay whole."""

    def place(self, request: Request, fleet: Fleet) -> Placement:
        decode = fleet.decoders[0].name
        other = next((engine.name for engine in fleet.prefillers if engine.name != decode), None)
        return Placement(decode=decode, prefill=other, reason="split")


class Divides:
    """Does not cope with an engine of no speed."""

    def place(self, request: Request, fleet: Fleet) -> Placement:
        best = min(fleet.decoders, key=lambda engine: 1 / engine.speed.token_s)
        return Placement(decode=best.name, reason="fastest")


class LoopsOnTies:
    """Never returns where all engines are alike."""

    def place(self, request: Request, fleet: Fleet) -> Placement:
        for _ in itertools.count():
            if len(fleet.engines) < 8 or len({engine.decode_requests for engine in fleet.engines}) > 1:
                break
        return Placement(decode=fleet.decoders[0].name, reason="first")


class Exits:
    def place(self, request: Request, fleet: Fleet) -> Placement:
        sys.exit(3)


class Dies:
    def place(self, request: Request, fleet: Fleet) -> Placement:
        os._exit(3)


class Mumbles:
    """Its reason would be a header of its own."""

    def place(self, request: Request, fleet: Fleet) -> Placement:
        return Placement(decode=fleet.decoders[0].name, reason="a\r\nset-cookie: b")


class Unmade:
    def __init__(self) -> None:
        raise RuntimeError("no licence")

    def place(self, request: Request, fleet: Fleet) -> Placement:
        raise NotImplementedError


class Whimsical(Staged):
    """Takes a seed and does not use it."""

    def prefilling(self, request: Request, engine: object) -> float:
        return float(os.urandom(1)[0])

    decoding = prefilling


class Unseeded:
    """Takes no seed, and is free to decide as it likes."""

    def place(self, request: Request, fleet: Fleet) -> Placement:
        decoders = fleet.decoders
        return Placement(decode=decoders[os.urandom(1)[0] % len(decoders)].name, reason="any")
