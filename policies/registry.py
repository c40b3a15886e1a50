"""Finds a policy by its name: an entry point of the group `baton.policies`, `module:Class`, or a `.py` file.

A known policy takes a decider and its number: `kv_cost+suffix_length:2048`.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from policies.contract import Policy
from policies.deciders import Always, Decider, IslBounding, Never, SuffixLength

GROUP = "baton.policies"

DECIDERS: dict[str, Any] = {
    "always": Always,
    "never": Never,
    "suffix_length": SuffixLength,
    "isl_bounding": IslBounding,
}


class UnknownPolicy(ValueError):
    """No policy of that name; the message lists those there are."""


def names() -> list[str]:
    """The policies that are installed."""
    return sorted(entry_points(group=GROUP).names)


def create(name: str) -> Policy:
    """Make the policy that is called `name`. Raises `UnknownPolicy`."""
    base, plus, decider = name.partition("+")
    options = {"decider": _decider(decider)} if plus else {}
    found = entry_points(group=GROUP, name=base)
    try:
        if found:
            made = next(iter(found)).load()(**options)
        elif ":" in base:
            module, _, attribute = base.partition(":")
            made = getattr(import_module(module), attribute)(**options)
        else:
            raise UnknownPolicy(f"policy {name!r} is not installed: use one of {', '.join(names())}, or module:Class")
    except (ImportError, AttributeError, TypeError) as error:
        raise UnknownPolicy(f"policy {name!r}: {error}: give module:Class that can be imported") from error
    if not isinstance(made, Policy):
        raise UnknownPolicy(f"policy {name!r}: {type(made).__name__} has no method place(request, fleet)")
    return made


def _decider(text: str) -> Decider:
    name, _, number = text.partition(":")
    if name not in DECIDERS:
        raise UnknownPolicy(f"decider {name!r} is not known: use one of {', '.join(DECIDERS)}")
    try:
        made: Decider = DECIDERS[name](int(number)) if number else DECIDERS[name]()
    except (ValueError, TypeError):
        raise UnknownPolicy(f"decider {text!r}: write a number of tokens after the colon, or nothing") from None
    return made
