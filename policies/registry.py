"""Finds a policy by its name: an entry point of the group `baton.policies`, or `module:Class`."""

from importlib import import_module
from importlib.metadata import entry_points

from policies.contract import Policy

GROUP = "baton.policies"


class UnknownPolicy(ValueError):
    """No policy of that name; the message lists those there are."""


def names() -> list[str]:
    """The policies that are installed."""
    return sorted(entry_points(group=GROUP).names)


def create(name: str) -> Policy:
    """Make the policy that is called `name`. Raises `UnknownPolicy`."""
    found = entry_points(group=GROUP, name=name)
    if found:
        made = next(iter(found)).load()()
    elif ":" in name:
        module, _, attribute = name.partition(":")
        try:
            made = getattr(import_module(module), attribute)()
        except (ImportError, AttributeError, TypeError) as error:
            raise UnknownPolicy(f"policy {name!r}: {error}: give module:Class that can be imported") from error
    else:
        raise UnknownPolicy(f"policy {name!r} is not installed: use one of {', '.join(names())}, or module:Class")
    if not isinstance(made, Policy):
        raise UnknownPolicy(f"policy {name!r}: {type(made).__name__} has no method place(request, fleet)")
    return made
