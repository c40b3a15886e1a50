"""Where one request stands between its failures: what it may still try, and whom it does not ask again. No I/O."""

from gateway.dispatch.budget import RetryBudget
from gateway.dispatch.verdict import Failure, Left, Leg, Next, Verdict, decide


class Course:
    """The memory of one request's attempts."""

    __slots__ = (
        "_budget",
        "_free",
        "_most",
        "_refusals",
        "_tries",
        "avoid",
        "deadline_s",
        "migrated",
        "migrations",
        "whole",
    )

    def __init__(self, budget: RetryBudget, deadline_s: float, tries: int, engines: int, migrations: int) -> None:
        """`deadline_s` on the clock that `after` is told; `engines` is the size of the fleet."""
        self._budget = budget
        self.deadline_s = deadline_s
        self._tries = self._most = tries - 1
        self._free = True
        self._refusals = engines
        self.migrations = migrations
        self.migrated = 0
        """Streams that went on elsewhere."""
        self.avoid: set[str] = set()
        """Engines that are not asked again."""
        self.whole = ""
        """Why it is not split any more; empty: it may be."""

    def after(
        self,
        failure: Failure,
        now_s: float,
        prefill: str | None,
        decode: str,
        others: bool = True,
        transfer: bool = False,
        exact: bool = False,
    ) -> Verdict:
        """What follows a failure of an attempt with these engines. It is taken for done: what it costs is gone.

        `others`: another engine can answer. `transfer`: its parameters are unsent and in time.
        `exact`: a stream can go on elsewhere.
        """
        verdict = decide(
            failure,
            Left(
                time_s=self.deadline_s - now_s,
                tries=self._tries,
                budget=self._budget.left(now_s) > 0,
                free=self._free,
                refusals=self._refusals,
                others=others,
                transfer=transfer,
                migrations=self.migrations - self.migrated if exact else 0,
            ),
        )
        if verdict.next is Next.FAIL:
            return verdict
        if verdict.pays:
            self._budget.take()
        elif failure.cause == "closed":
            self._free = False
        if failure.cause == "refused":
            self._refusals -= not verdict.tries
        self._tries -= verdict.tries
        if verdict.next is Next.MIGRATE:
            self.migrated += 1
            self._tries = self._most
        if verdict.next is Next.WHOLE:
            self.whole = verdict.why
        if failure.cause != "refused" or failure.begun:  # else the fleet knows it is down, until it is up again
            if verdict.avoid is Leg.PREFILL and prefill is not None:
                self.avoid.add(prefill)
            elif verdict.avoid is Leg.DECODE:
                self.avoid.add(decode)
        return verdict
