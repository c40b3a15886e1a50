"""The numbers that a fit looks for, by name, and the profiles that they make.

`tp4.token_s` belongs to engines on 4 GPUs, `mix` to all; `tcp.gbps` is the speed of the network `tcp`.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from engines.model.profile import Profile
from load.fit.table import Row

Values = dict[str, float]

OWN = ("token_s", "context_s", "step_s", "sequence_s", "kv_s")
"""One of each for every tensor-parallel size."""
SHARED = ("mix", "join_s", "leg_s", "second_leg_s")
"""One for all."""
SMALLEST = {
    "token_s": 1e-7,
    "context_s": 1e-12,
    "step_s": 1e-4,
    "sequence_s": 1e-7,
    "kv_s": 1e-11,
    "mix": 1.0,
    "join_s": 1e-5,
    "leg_s": 1e-4,
    "second_leg_s": 1e-4,
    "gbps": 1e-2,
}
"""Below this a number is not looked for. The largest is `SPAN` times as much, of `mix` 4."""
SPAN = 1e5
_LARGEST_MIX = 4.0


def start(profile: Profile, gpus: int, rows: Sequence[Row]) -> Values:
    """Where to begin: `profile` is of engines on `gpus` GPUs; what the work of others takes is scaled to theirs.

    Of a network it is the least that could have carried what it did.
    """
    values: Values = {}
    sizes, networks = _asked(rows)
    for size in sizes:
        for name in OWN:
            scale = gpus / size if name in ("token_s", "context_s", "kv_s") else 1.0
            values[f"tp{size}.{name}"] = getattr(profile, name) * scale
    values |= {name: getattr(profile, name) for name in SHARED}
    for network in networks:
        own = [row for row in rows if row.setup.network == network]
        needed = max(row.prompt * profile.kv_bytes_per_token * 8e-9 * row.measured.rps for row in own)
        values[f"{network}.gbps"] = needed
    return {name: bounded(name, value) for name, value in values.items()}


def _asked(rows: Iterable[Row]) -> tuple[list[int], list[str]]:
    setups = [row.setup for row in rows]
    return sorted({size for each in setups for size in each.sizes}), sorted({each.network for each in setups} - {""})


def bounded(name: str, value: float) -> float:
    """The nearest value that is looked for."""
    kind = name.rpartition(".")[2]
    low = SMALLEST[kind]
    return min(max(value, low), _LARGEST_MIX if kind == "mix" else low * SPAN)


def concerns(name: str, row: Row) -> bool:
    """Whether the model of this run depends on that number."""
    owner, _, kind = name.rpartition(".")
    if kind == "gbps":
        return row.setup.network == owner
    if not owner:
        # `mix` also stretches the one token that a pulled prompt leaves to compute: some 10 µs, not worth a run.
        return kind == "leg_s" or (kind == "mix") == (row.setup.prefill is None)
    return int(owner.removeprefix("tp")) in row.setup.sizes


def profiles(values: Mapping[str, float], base: Profile) -> dict[int, Profile]:
    """A profile for each tensor-parallel size; what is not looked for is as in `base`."""
    shared = {name: values[name] for name in SHARED}
    sizes = sorted({int(name.split(".")[0][2:]) for name in values if name.endswith(".step_s")})
    return {
        size: replace(base, **shared, **{name: values[f"tp{size}.{name}"] for name in OWN}, source="") for size in sizes
    }


def speeds(values: Mapping[str, float]) -> dict[str, float]:
    """Gbit/s of each network."""
    return {name.removesuffix(".gbps"): value for name, value in values.items() if name.endswith(".gbps")}
