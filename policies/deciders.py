"""Deciders: whether a prompt is worth a remote prefill, asked once the decode engine is chosen.

A policy takes one by name: `kv_cost+suffix_length:2048`. `joint` needs none: it weighs both ways in one minimum.
"""

from typing import Protocol

from policies.contract import Engine, Fleet, Request


class Decider(Protocol):
    """Says whether the decode engine should prefill by itself."""

    near: bool
    """Whether the decode engine should be chosen by what it holds of the prompt too: a decider that looks at that is
    dead without (0.1 % of a trace's requests stay local)."""

    def local(self, request: Request, fleet: Fleet, decode: Engine) -> str:
        """Why the decode engine should prefill by itself; empty if another engine should."""
        ...


class Always:
    """Every prompt is prefilled remotely.

    Formula: none. Source: vLLM's proxy examples. Flaw: pays two legs for a suffix of a few tokens.
    """

    near = False

    def local(self, request: Request, fleet: Fleet, decode: Engine) -> str:
        return ""


class Never:
    """The decode engine prefills, as an engine that does everything.

    Formula: none. Flaw: long prompts stall the decodes beside them.
    """

    near = True

    def local(self, request: Request, fleet: Fleet, decode: Engine) -> str:
        return "never remote"


class SuffixLength:
    """Remote if at least N tokens of the prompt are missing on the decode engine.

    Formula: prompt - cached(decode) >= N. Source: llm-d's decider; N = 16 in its sample, 2048 does better on chat.
    Flaw: blind to queues: a short prefill queue is not used, a long one not avoided.
    """

    near = True

    def __init__(self, tokens: int = 2048) -> None:
        self.tokens = tokens

    def local(self, request: Request, fleet: Fleet, decode: Engine) -> str:
        short = request.prompt_tokens - decode.cached_tokens < self.tokens
        return "short suffix" if short else ""


class IslBounding:
    """Remote if what is missing is long, or most of the prompt.

    Formula: missing > N or missing > 0.7 * prompt, missing = prompt - cached(decode), and missing > 16.
    Source: NVIDIA Dynamo's conditional disaggregation, N = 2048. Flaw: as `suffix_length`; and a short new prompt,
    of which all is missing, goes remote although its prefill is over before a second leg is set up.
    """

    near = True
    ratio = 0.7
    least = 16

    def __init__(self, tokens: int = 2048) -> None:
        self.tokens = tokens

    def local(self, request: Request, fleet: Fleet, decode: Engine) -> str:
        missing = request.prompt_tokens - decode.cached_tokens
        remote = missing > self.tokens or missing > max(self.least, self.ratio * request.prompt_tokens)
        return "" if remote else "short suffix"
