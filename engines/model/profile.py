"""How fast an engine of one kind is: the coefficients of its steps, as fitted from measurements."""

import re
import tomllib
from pathlib import Path

import msgspec
from msgspec.structs import replace

from policies.contract import Speed

_TIMES = re.compile(r":\d+(\.\d+)?$")

FOLDER = Path(__file__).with_name("profiles")


class UnknownProfile(ValueError):
    """There is no such profile; the message lists those there are."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of engine serving one model.

    A step takes `step_s + sequence_s * batch + kv_s * KV tokens + join_s * pulled requests that join`, and for each
    chunk of n prompt tokens after c others `token_s * n + context_s * n * (c + n / 2)`, times `mix` if it decodes too.
    """

    token_s: float
    context_s: float
    step_s: float
    sequence_s: float
    kv_s: float
    mix: float = 1.0
    join_s: float = 0.0
    """What a request whose blocks were pulled adds to its first step."""
    leg_s: float = 0.0
    """From the client's send to the engine's queue: HTTP, tokenising."""
    second_leg_s: float = 0.0
    """The same from the prefill engine's answer to the decode engine's queue, and the set-up of the pull."""
    chunk_tokens: int = 8192
    """`max_num_batched_tokens`."""
    max_sequences: int = 256
    kv_bytes_per_token: int = 0
    kv_tokens: int = 0
    """That fit into one engine; 0: not said."""
    link_gbps: float = 400.0
    """Between engines of one host."""
    link_latency_us: float = 100.0
    gpus: int = 1
    """That one engine takes."""
    source: str = ""
    """What it was fitted from, and how well."""

    def prefill_s(self, new: float, cached: float = 0.0) -> float:
        """Seconds that `new` prompt tokens after `cached` ones take, without the step's own cost."""
        return new * (self.token_s + self.context_s * (cached + new / 2))

    def decode_s(self, batch: int, kv_tokens: float) -> float:
        """Seconds of a step of `batch` sequences, without prompts."""
        return self.step_s + self.sequence_s * batch + self.kv_s * kv_tokens

    def slower(self, times: float) -> "Profile":
        """The same engine in a world so many times as slow: for machines that cannot keep its real time."""
        took = ("token_s", "context_s", "step_s", "sequence_s", "kv_s", "join_s", "leg_s", "second_leg_s")
        changed = {name: getattr(self, name) * times for name in (*took, "link_latency_us")}
        return replace(self, **changed, link_gbps=self.link_gbps / times)

    @property
    def speed(self) -> Speed:
        """The same as a policy sees it."""
        return Speed(
            token_s=self.token_s,
            context_s=self.context_s,
            step_s=self.step_s,
            sequence_s=self.sequence_s,
            kv_s=self.kv_s,
            mix=self.mix,
            leg_s=self.second_leg_s,
            join_s=self.join_s,
        )


def names() -> list[str]:
    """The profiles that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Profile:
    """A profile by its name, or by the path of a TOML file; `NAME:4` is four times as slow. Raises `UnknownProfile`."""
    name, slower, times = name.rpartition(":") if _TIMES.search(name) else (name, "", "")
    if slower:
        return load(name).slower(float(times))
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Profile)
    except OSError:
        raise UnknownProfile(f"no profile {name!r}: use one of {', '.join(names())}, or a .toml file") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UnknownProfile(f"{path}: {error}") from None
