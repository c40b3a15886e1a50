"""What shall go wrong on a double. All of it may be changed while it runs, from Python or by `POST /double/control`."""

import random
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Hang = Literal["", "answer", "body", "half", "forever"]
HANGS: tuple[str, ...] = get_args(Hang)


class FaultError(ValueError):
    """A fault was asked for that does not exist or has another type; the message names it."""


@dataclass
class Faults:
    """The faults of one double; the defaults are a healthy engine. Counters (`*_next`, `lose_events`) run down to 0.

    `error_*`, `hang` and `cut_after` count for the generating routes (`/v1/...` POST) only.
    """

    slow: float = 1.0
    """factor on every duration of the timing model"""
    error_next: int = 0
    """answer the next N requests with `error_status`"""
    error_rate: float = 0.0
    """answer this share of requests with `error_status`, drawn with `seed`"""
    error_status: int = 500
    hang: Hang = ""
    """accept and never answer: nothing at all ("answer"), headers of a 200 without a body ("body"), half an event and
    then nothing ("half"); or an answer that never ends ("forever")"""
    hang_next: int = 0
    """hang the next N requests only; 0: all, while `hang` is set"""
    cut_after: int = 0
    """close the connection without warning after this many chunks of a stream (SSE events); 0: never"""
    fail_after: int = 0
    """as if the engine's core died: after this many chunks a stream ends in order, with an error event; 0: never"""
    cut_next: int = 0
    """cut (or fail) the next N streams only; 0: all, while `cut_after` or `fail_after` is set"""
    health_status: int = 200
    """status of `/health`"""
    refuse: bool = False
    """new connections are refused; those that are open live on"""
    lose_events: int = 0
    """batches of KV events that are not sent (they keep their numbers and can be replayed)"""
    replay_room: int = 0
    """of a replay, drop every other so many messages, the end too, as a ROUTER does when its reader is slow; 0: none"""
    drop_params: bool = False
    """a prefill answer carries no kv_transfer_params"""
    omit_params: tuple[str, ...] = ()
    """fields missing from a prefill answer's kv_transfer_params"""
    die_after_prefill: bool = False
    """die as soon as the next answer with kv_transfer_params is out"""
    mute_heartbeats: bool = False
    """as a decode engine: never extend a lease"""
    seed: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0), repr=False, compare=False)

    def set(self, **values: Any) -> None:
        """Change some faults at once. Raises `FaultError`, and changes nothing, if a name or a type is wrong."""
        known = {f.name: f for f in fields(self) if not f.name.startswith("_")}
        for name, value in values.items():
            if name not in known:
                raise FaultError(f"unknown fault {name!r}: use one of {', '.join(known)}")
            now = getattr(self, name)
            if isinstance(now, tuple) and isinstance(value, list):
                values[name] = tuple(value)
            elif isinstance(now, float) and type(value) is int:
                values[name] = float(value)
            elif type(value) is not type(now):
                raise FaultError(f"fault {name!r} is a {type(now).__name__}, not {value!r}")
        if values.get("hang", "") not in HANGS:
            raise FaultError(f"fault 'hang' is one of {', '.join(map(repr, HANGS))}, not {values['hang']!r}")
        for name, value in values.items():
            setattr(self, name, value)
        if "seed" in values:
            self._random = random.Random(self.seed)

    def heal(self) -> None:
        """Back to a healthy engine."""
        self.set(**{f.name: f.default for f in fields(self) if not f.name.startswith("_")})

    def draw_error(self) -> int:
        """The status to answer the next request with, or 0 to serve it."""
        if self.error_next > 0:
            self.error_next -= 1
            return self.error_status
        if self.error_rate and self._random.random() < self.error_rate:
            return self.error_status
        return 0

    def draw_hang(self) -> Hang:
        """How the next request hangs, or "" to serve it."""
        mode = self.hang
        if mode and self.hang_next > 0:
            self.hang_next -= 1
            if not self.hang_next:
                self.hang = ""
        return mode

    def draw_cut(self) -> tuple[int, int]:
        """After how many chunks to cut the next stream, and to end it with an error; 0: not."""
        after = self.cut_after, self.fail_after
        if any(after) and self.cut_next > 0:
            self.cut_next -= 1
            if not self.cut_next:
                self.cut_after = self.fail_after = 0
        return after
