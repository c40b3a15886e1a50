"""One decision of one policy, checked."""

from gateway.routing.entry import Entry
from gateway.routing.watchdog import Overlong, Watchdog
from policies.check import readable
from policies.contract import Fleet, Nonsense, Placement, Request, check


def decided(entry: Entry, watchdog: Watchdog, request: Request, fleet: Fleet) -> Placement:
    """What the policy says; it can be carried out. Raises `Nonsense`, `Overlong`, or what the policy raises."""
    if entry.guarded:
        found = watchdog.run(entry.place, request, fleet)
        return readable(check(found, request, fleet))
    return check(entry.place(request, fleet), request, fleet)


def cause_of(error: Exception) -> str:
    """What went wrong, in one word."""
    return "nonsense" if isinstance(error, Nonsense) else "stopped" if isinstance(error, Overlong) else "raised"
