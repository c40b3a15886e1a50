"""`joint`: the prefill engine (or none) and the decode engine together, by what the request will wait and what it costs
the others.

Formula, in seconds; the smaller of two sums wins, exact ties at random:

    remote = q_p + w_p + f_p * (price_p - 1) + B_d + leg + transfer(p, d)            least over p and d
    local  = q_d + w_d + f_d * (price_d - 1) + B_d + n_d * (delay(w_d) - delay(join))     least over d

    delay(w) = harm * stall(w) + 0.1 * max(1, itl_price) * w * odds_d ** 2

    w_e     = prefill(what e lacks of the prompt), times `mix` beside running decodes; blocks on a slower tier at the
              time that reloading them takes
    f_e     = of that, what falls to this request: what prompts that begin alike have in common (`policies/alike.py`) is
              computed once for all that come, so that a hot prefix gets copies
    q_e     = prefill seconds booked on e, without what is done of the present one
    price_e = 3 + min(20, arrivals per prefill engine * (q_e + f_e) / max(0.1, 1 - prefill_load)):
              what a second of this work costs those who come after
    stall(w) = w * min(1, w / (6 decode steps)): what a local prefill takes from each of the n_d requests that d decodes
              now; a short pause hurts nobody
    odds_d  = the larger of full / max(0.1, 1 - full), full being the share of d's KV memory that they hold, and half of
              what they add to an empty engine's decode step, in such steps: where there is room and steps are short,
              decoding longer keeps nobody out
    join    = what d's next step takes longer for a request that was prefilled elsewhere; a local prefill no longer than
              that costs its decodes nothing
    B_d     = wait_d + 0.1 * answer * (step_d + n_d * what this request adds to each step)
              + harm * seconds of stall that each decode on d had lately, a second * answer * step_d
    wait_d  = 2048 decode steps * what does not fit into d's KV memory / that memory; such an engine prefills nothing
              itself

answer: 256 tokens, or the client's limit if that is less. Where some engines do both, a remote prefill there costs its
decodes n_p * delay(w_p) too; where all do: the local sum, without delay.

`harm` is a virtual queue (`policies/stalls.py`): of the tokens that are decoded (as many a second as the running
batches and their steps say, shared over the arrivals) 1 % may come after a pause more than twice as long as usual;
each placement that brings more raises it, one that brings less lowers it, within [0.05, 2.1]. So pauses are spent
where there are some to spare, without an objective in milliseconds; and as it is paid by decodes too that go where
stalls are, they gather on few engines if that spares the others.
Source: drift-plus-penalty; terms and defaults by simulation (`load/results/policies.md`).
Defaults: as above (`joint`); harm 0.05, and 0.01 for 0.1 in `local` (`joint_throughput`: least TTFT, longer pauses);
0.2 % and harm at most 3 (`joint_latency`); harm is each time multiplied by the fleet's `itl_price`.
Where the chosen engines make a request wait longer than its objective (2 s where it has none), or have no room for it,
the placement says so (`saturated`): to hold or to refuse it is admission's.
Flaws: trusts the fitted speeds; places one request at a time and never moves it; cannot make room where all is full.
"""

from policies.contract import Fleet, Placement, Request
from policies.minimum import STEPS, Minimum
from policies.stalls import Stalls


class Joint:
    """Both engines in one minimum."""

    least, most = 0.05, 2.1
    """Between which `harm` moves."""
    slowed = STEPS
    """What a second costs by which a local prefill delays a decode, where half of the memory is held."""
    share = 0.01
    """Of tokens that may come after a stall."""

    def __init__(self, seed: int | None = None) -> None:
        self._minimum = Minimum(seed, Stalls(self.share, self.least, self.most), self.slowed)

    def place(self, request: Request, fleet: Fleet) -> Placement:
        return self._minimum.place(request, fleet)


class JointLatency(Joint):
    """`joint` for short pauses between tokens."""

    most = 3.0
    share = 0.002


class JointThroughput(Joint):
    """`joint` for the least TTFT, at the price of longer pauses."""

    least, most = 0.05, 0.05
    slowed = 0.01
