"""From what probes saw to a profile: lines of least absolute relative error, so that outliers do not count.

Every coefficient is at least zero. What could not be seen keeps the value of the profile that one begins with.
"""

import statistics
from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from engines.model.profile import Profile
from load.live.seen import Journey, Seen

Row = tuple[Sequence[float], float, float]
"""What the coefficients are multiplied with, the seconds that came of it, and those that errors are a share of."""


class Error(msgspec.Struct, frozen=True):
    """How far a profile is from probes of one kind, as a share: 0.1 is ten percent."""

    of: str
    probes: int
    median: float
    p90: float


class Solved(msgspec.Struct, frozen=True):
    """A profile, and how true it is."""

    profile: Profile
    errors: tuple[Error, ...]
    notes: tuple[str, ...]
    """What was not seen, or should be known."""


def line(rows: Sequence[Row], rounds: int = 60) -> list[float]:
    """Coefficients, none below zero, of least absolute relative error: least squares, weighted anew each round."""
    import numpy as np

    whole = np.array([x for x, _, _ in rows], dtype=float)
    of = np.array([share for _, _, share in rows], dtype=float)
    wanted = np.array([y for _, y, _ in rows], dtype=float) / of
    scale = np.maximum(np.abs(whole).max(axis=0), 1e-30)
    a = whole / scale / of[:, None]
    used = list(range(a.shape[1]))
    found = np.zeros(a.shape[1])
    while used:
        weights = np.ones(len(rows))
        for _ in range(rounds):
            root = np.sqrt(weights)
            part = np.linalg.lstsq(a[:, used] * root[:, None], wanted * root, rcond=None)[0]
            weights = 1 / np.maximum(np.abs(a[:, used] @ part - wanted), 1e-4)
        found[:] = 0
        found[used] = part
        worst = int(np.argmin(part))
        if part[worst] >= 0:
            break
        found[:] = 0
        del used[worst]
    return [float(value) for value in found / scale]


def solve(seen: Seen, start: Profile, kv_tokens: int = 0) -> Solved:
    """The profile that explains what was seen. Raises ValueError without enough prefills and steps."""
    if len(seen.prefills) < 4 or len(seen.steps) < 4:
        raise ValueError("too few probes were made: let it run longer")
    notes: list[str] = []
    profile = replace(start, kv_tokens=kv_tokens, source="")
    profile = replace(profile, chunk_tokens=_chunk(seen, start, notes))
    step, sequence, kv = line([((1.0, p.batch, p.kv_tokens), p.took_s, p.took_s) for p in seen.steps])
    profile = replace(profile, step_s=step, sequence_s=sequence, kv_s=kv)
    # The step itself is known by now; what is left of a prefill is the way there and its tokens.
    rows = []
    for p in seen.prefills:
        left_s = p.took_s - step * _steps(profile, p.new)
        rows.append(((1.0, p.new, p.new * (p.cached + p.new / 2)), left_s, p.took_s))
    leg, token, context = line(rows)
    profile = replace(profile, leg_s=leg, token_s=token, context_s=context)
    if seen.beside:
        mix = statistics.median(p.more_s / max(1e-9, profile.prefill_s(p.new)) for p in seen.beside)
        profile = replace(profile, mix=max(0.1, mix))
    else:
        profile = replace(profile, mix=1.0)
        notes.append("no prompt was seen beside decodes: mix is 1 by assumption")
    if seen.journeys:
        profile = _journeys(seen, profile, notes)
    return Solved(profile, tuple(errors(seen, profile)), tuple(notes))


def _chunk(seen: Seen, start: Profile, notes: list[str]) -> int:
    if seen.chunk_tokens:
        return seen.chunk_tokens
    longest = max(probe.new for probe in seen.prefills)
    chunk = max(start.chunk_tokens, longest)
    notes.append(f"{longest} tokens were computed in one step, longer prompts were not tried: chunk_tokens is {chunk}")
    return chunk


def _steps(profile: Profile, tokens: int) -> int:
    return -(-tokens // profile.chunk_tokens)


def _journeys(seen: Seen, profile: Profile, notes: list[str]) -> Profile:
    """The ways to the engines, and what moving KV takes."""
    alone = [probe for probe in seen.journeys if not probe.beside]
    legs = [p.prefill_s - profile.step_s * _steps(profile, p.new) - profile.prefill_s(p.new) for p in alone]
    profile = replace(profile, leg_s=max(0.0, statistics.median(legs)), second_leg_s=0.0, join_s=0.0)
    moved = [probe for probe in alone if probe.split]
    if not moved:
        if seen.splits:
            notes.append(
                "the gateway split no request, so the transfer of KV was not measured: let it choose lmetric "
                "(`policy_header = true`), or run it with `--policy lmetric`"
            )
        return profile
    if seen.joins:
        join = statistics.median(probe.more_s for probe in seen.joins) - profile.mix * profile.token_s
        profile = replace(profile, join_s=max(0.0, join))
    rows = []
    for p in moved:
        left_s = p.rest_s - profile.step_s - profile.token_s - profile.join_s
        rows.append(((1.0, float(p.new)), left_s, p.prefill_s + p.rest_s))
    way, each = line(rows)
    profile = replace(profile, second_leg_s=way, link_latency_us=0.0)
    if seen.kv_bytes_per_token:
        profile = replace(profile, kv_bytes_per_token=round(seen.kv_bytes_per_token))
    elif not profile.kv_bytes_per_token:
        profile = replace(profile, kv_bytes_per_token=1024)
        notes.append("what was pulled is not counted where it can be read: 1024 bytes a token by assumption")
    if each > 0:
        profile = replace(profile, link_gbps=profile.kv_bytes_per_token * 8e-9 / each)
    else:
        notes.append(f"moving KV takes no time that could be seen: the link is left at {profile.link_gbps:g} Gbit/s")
    busy = [probe for probe in seen.journeys if probe.beside and probe.split]
    if busy:
        # Decode engines are seldom idle, and a busy one takes notice of a request, and of its KV, later.
        profile = replace(profile, leg_s=max(0.0, profile.leg_s + _late(profile, busy, 0)))
        profile = replace(profile, second_leg_s=max(0.0, way + _late(profile, busy, 1)))
    return profile


def _late(profile: Profile, probes: Sequence[Journey], part: int) -> float:
    """By how much one of the model's `parts` comes too early, seconds."""
    return statistics.median((p.prefill_s, p.rest_s)[part] - parts(profile, p)[part] for p in probes)


def parts(profile: Profile, journey: Journey) -> tuple[float, float]:
    """Until the prefill engine has answered, and from then to the first token, as the model has it.

    An engine that decodes takes a new request between two steps, and so its KV: half a step of waiting each time.
    """
    prefill_s = profile.leg_s + profile.step_s * _steps(profile, journey.new) + profile.prefill_s(journey.new)
    if not journey.split:
        return prefill_s, 0.0
    moved_s = journey.new * profile.kv_bytes_per_token * 8e-9 / profile.link_gbps
    step_s = profile.decode_s(journey.beside, 0)
    if journey.beside:
        moved_s += step_s
    return prefill_s, profile.second_leg_s + moved_s + profile.join_s + step_s + profile.token_s


def errors(seen: Seen, profile: Profile) -> Iterable[Error]:
    """Of each kind of probe."""
    work = [profile.step_s * _steps(profile, p.new) + profile.prefill_s(p.new, p.cached) for p in seen.prefills]
    way_s = statistics.median(p.took_s - each for p, each in zip(seen.prefills, work, strict=True))
    yield _error("prefill", [(way_s + each, p.took_s) for p, each in zip(seen.prefills, work, strict=True)])
    yield _error("decode step", [(profile.decode_s(p.batch, p.kv_tokens), p.took_s) for p in seen.steps])
    for of, busy in (("TTFT through the gateway", False), ("the same beside decodes", True)):
        if probes := [probe for probe in seen.journeys if bool(probe.beside) is busy]:
            yield _error(of, [(sum(parts(profile, p)), p.prefill_s + p.rest_s) for p in probes])
    if seen.beside:
        normal = profile.decode_s(1, 0)
        mixed = [(normal + profile.mix * profile.prefill_s(p.new), normal + max(p.more_s, 0.0)) for p in seen.beside]
        yield _error("prefill beside decode", mixed)


def _error(of: str, pairs: Sequence[tuple[float, float]]) -> Error:
    sizes = sorted(abs(told / measured - 1) for told, measured in pairs)
    return Error(of, len(sizes), statistics.median(sizes), sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))])
