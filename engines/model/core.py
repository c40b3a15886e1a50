"""The scheduler of one modelled engine: continuous batching, chunked prefill, a block pool; time is handed in.

Follows vLLM's v1 scheduler: first come first served; a step gives every running sequence a token and fills the rest of
its token budget with prompts. Steps that only decode are taken together: as many as pass until a sequence ends or
another arrives, in closed form, so a million tokens cost as little as the events between them.
"""

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from engines.model.blocks import Blocks
from engines.model.profile import Profile
from engines.model.sequence import Sequence

Told = Callable[[Sequence, float], None]


def _nobody(sequence: Sequence, now_s: float) -> None:
    """Whoever does not want to know."""


class Core:
    """One engine. `due_s` says when `fire` wants to be called; infinity while there is nothing to do.

    `on_first` is told of a sequence's first token, `on_end` of its last; `on_room` of one with `waits` set that has its
    blocks: `pulled` is to be called once its KV is there. Blocks of an ended sequence stay its own until `release`.
    """

    def __init__(
        self,
        profile: Profile,
        blocks: int,
        block_tokens: int,
        on_first: Told = _nobody,
        on_end: Told = _nobody,
        on_room: Told = _nobody,
    ) -> None:
        self.profile = profile
        self.blocks = Blocks(blocks)
        self.size = block_tokens
        self.slow = 1.0
        """Steps take this much longer (a fault)."""
        self.due_s = math.inf
        self.on_first, self.on_end, self.on_room = on_first, on_end, on_room
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.running = 0
        self.kv_tokens = 0
        """Tokens that running sequences hold."""
        self.gaps: list[tuple[float, int]] = []
        """Seconds between two tokens of a sequence, and how many there were of that length."""
        self.busy_s = 0.0
        self.prefill_tokens = 0
        """Prompt tokens computed so far."""
        self._ends: list[tuple[int, int, Sequence]] = []
        self._order = 0
        self._step = 0
        self._started_s = 0.0
        self._steps = 0
        """Steps of the run that goes on, if it only decodes; 0: none goes on, or one with prompts."""
        self._chunks: list[tuple[Sequence, int]] = []

    @property
    def idle(self) -> bool:
        return self.due_s == math.inf

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """A request arrives. Raises ValueError if it can never fit."""
        if self._needs(sequence) > self.blocks.capacity:
            raise ValueError(f"{sequence.prompt} + {sequence.answer} tokens do not fit into the engine's KV memory")
        sequence.arrived_s = now_s
        self.waiting.append(sequence)
        self._interrupt(now_s)

    def pulled(self, sequence: Sequence, now_s: float) -> None:
        """The KV of a sequence that had waited for it is there; its last token is computed here."""
        sequence.pulled = sequence.prompt - 1 - sequence.cached
        sequence.done = sequence.prompt - 1
        self.prefilling.append(sequence)
        self._interrupt(now_s)

    def release(self, sequence: Sequence, now_s: float) -> None:
        """The blocks of an ended sequence are not needed any more (P: pulled, or the lease is over)."""
        if sequence.blocks:
            self.blocks.release(sequence.names[: sequence.filled], sequence.blocks - sequence.filled)
            sequence.blocks = sequence.filled = 0
            if self.waiting:
                self._interrupt(now_s)

    def fire(self) -> None:
        """`due_s` has come: end what goes on and begin what is next."""
        now_s = self.due_s
        if self._steps:
            self._decoded(self._steps, now_s)
            self._steps = 0
        elif self._chunks:
            self._mixed(now_s)
        self._begin(now_s)

    # Admission.

    def _needs(self, sequence: Sequence) -> int:
        return -(-(sequence.prompt + sequence.answer) // self.size)

    def _admit(self, left: int, now_s: float) -> None:
        """Give waiting sequences their blocks, in order, while the step has tokens `left`; room for the answer is kept
        from the start. Who waits behind a long prompt finds in the cache what that has computed.
        """
        blocks, limit = self.blocks, self.profile.max_sequences
        while left > 0 and self.waiting and self.running + len(self.prefilling) < limit:
            sequence = self.waiting[0]
            full = (sequence.prompt - 1) // self.size
            hit = blocks.lead(sequence.names[:full])
            names = sequence.names[:hit]
            blocks.hold(names)
            more = self._needs(sequence) - hit
            if more > blocks.room:
                blocks.release(names)
                return
            blocks.take(more)
            self.waiting.popleft()
            sequence.blocks, sequence.filled = hit + more, hit
            sequence.cached = sequence.done = max(hit * self.size, sequence.granted)
            if sequence.waits:
                self.on_room(sequence, now_s)
            else:
                self.prefilling.append(sequence)
                left = self._take(sequence, left)

    # Steps.

    def _interrupt(self, now_s: float) -> None:
        """Something joins: between two steps, so a run that only decodes ends with the step that goes on."""
        if self.idle:
            self._begin(now_s)
        elif self._steps:
            self._steps = self._steps_until(now_s)
            self.due_s = self._started_s + self._run_s(self._steps)

    def _begin(self, now_s: float) -> None:
        self._started_s = now_s
        self._chunks = []
        left = self.profile.chunk_tokens - self.running
        for sequence in self.prefilling:
            if left <= 0:
                break
            left = self._take(sequence, left)
        self._admit(left, now_s)
        if self._chunks:
            self.due_s = now_s + self._step_s() * self.slow
        elif self.running:
            self._steps = self._ends[0][0] - self._step
            self.due_s = now_s + self._run_s(self._steps)
        else:
            self.due_s = math.inf

    def _run_s(self, steps: int) -> float:
        """Seconds of so many steps that only decode: each token makes the next step longer."""
        first = self.profile.decode_s(self.running, self.kv_tokens)
        return self.slow * steps * (first + self.profile.kv_s * self.running * (steps - 1) / 2)

    def _steps_until(self, now_s: float) -> int:
        """Steps of the present run that will have ended once the one that goes on at `now_s` has."""
        low, high = 1, self._steps
        while low < high:
            middle = (low + high) // 2
            if self._started_s + self._run_s(middle) >= now_s:
                high = middle
            else:
                low = middle + 1
        return low

    def _take(self, sequence: Sequence, left: int) -> int:
        """The next chunk of a prompt, of at most `left` tokens; returns what is left then. Others find its blocks at
        once: they come after it, if need be in the same step.
        """
        count = min(left, sequence.prompt - sequence.done)
        self._chunks.append((sequence, count))
        self._fill(sequence, sequence.done + count)
        return left - count

    def _step_s(self) -> float:
        """Seconds that a step with these chunks takes."""
        profile = self.profile
        work, joins = 0.0, 0
        for sequence, count in self._chunks:
            joins += bool(sequence.pulled)
            work += profile.prefill_s(count, sequence.done)
        if self.running:
            work *= profile.mix
        return profile.decode_s(self.running, self.kv_tokens) + work + profile.join_s * joins

    def _mixed(self, now_s: float) -> None:
        """A step with prompts has ended."""
        took_s = now_s - self._started_s
        self.busy_s += took_s
        if self.running:
            self.gaps.append((took_s, self.running))
            self._step += 1
            self.kv_tokens += self.running
        else:
            self._step += 1
        ended = self._pop(now_s)
        first = []
        for sequence, count in self._chunks:
            sequence.done += count
            self.prefill_tokens += count
            if sequence.done == sequence.prompt:
                first.append(sequence)
        if first:
            self.prefilling = [sequence for sequence in self.prefilling if sequence.done < sequence.prompt]
        for sequence in first:
            sequence.first_s = sequence.last_s = now_s
            if sequence.answer > 1:
                self.running += 1
                self.kv_tokens += sequence.prompt + 1
                sequence.ends_at = self._step + sequence.answer - 1
                self._order += 1
                heappush(self._ends, (sequence.ends_at, self._order, sequence))
            else:
                ended.append(sequence)
            self.on_first(sequence, now_s)
        for sequence in ended:
            self.on_end(sequence, now_s)

    def _decoded(self, steps: int, now_s: float) -> None:
        """So many steps without prompts have ended."""
        took_s = now_s - self._started_s
        self.busy_s += took_s
        self.gaps.append((took_s / steps, steps * self.running))
        self._step += steps
        self.kv_tokens += steps * self.running
        for sequence in self._pop(now_s):
            self.on_end(sequence, now_s)

    def _pop(self, now_s: float) -> list[Sequence]:
        """Sequences whose last token came with the step that has just ended."""
        ended = []
        while self._ends and self._ends[0][0] <= self._step:
            _, _, sequence = heappop(self._ends)
            self.running -= 1
            self.kv_tokens -= sequence.prompt + sequence.answer
            sequence.last_s = now_s
            self._fill(sequence, sequence.prompt + sequence.answer - 1)
            ended.append(sequence)
        return ended

    def _fill(self, sequence: Sequence, tokens: int) -> None:
        """The first `tokens` tokens are computed: their full blocks can be found by others."""
        full = min(tokens // self.size, len(sequence.names))
        if full > sequence.filled:
            self.blocks.fill(sequence.names[sequence.filled : full])
            sequence.filled = full
