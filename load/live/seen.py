"""What probes saw: plain facts, times in seconds, from which a profile is solved."""

import msgspec


class Prefill(msgspec.Struct, frozen=True):
    """A prompt alone on an idle engine, until its first token."""

    new: int
    """Tokens to compute."""
    cached: int
    took_s: float


class Step(msgspec.Struct, frozen=True):
    """The mean step of a batch that only decodes."""

    batch: int
    kv_tokens: float
    """That the batch holds, in the middle of the time."""
    took_s: float


class Beside(msgspec.Struct, frozen=True):
    """What a prompt on the same engine adds to streams that run."""

    new: int
    more_s: float


class Journey(msgspec.Struct, frozen=True):
    """A prompt through a gateway."""

    new: int
    prefill_s: float
    """Until the engine that prefills has answered, or streams."""
    rest_s: float
    """From then to the client's first token; 0 if one engine did it all."""
    split: bool
    beside: int = 0
    """Streams that ran on the engine that decodes; 0: nothing else was under way."""


class Join(msgspec.Struct, frozen=True):
    """What a request that was prefilled elsewhere adds to streams that run."""

    tokens: int
    more_s: float


class Shared(msgspec.Struct, frozen=True):
    """Two engines at once: how much longer each takes than alone."""

    decode: float
    prefill: float


class Seen(msgspec.Struct):
    """Everything that was seen of a target."""

    prefills: list[Prefill] = []
    steps: list[Step] = []
    beside: list[Beside] = []
    journeys: list[Journey] = []
    joins: list[Join] = []
    shared: list[Shared] = []
    splits: bool = False
    """The target has engines that only prefill."""
    chunk_tokens: int = 0
    """Tokens of prompts in one step; 0: no prompt was long enough to tell."""
    kv_bytes_per_token: float = 0.0
    """As pulled; 0: nothing was."""
