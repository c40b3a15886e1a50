"""Finds a policy by its name: an entry point of the group `baton.policies`, `module:Class`, or a `.py` file.

A known policy takes a decider and its number: `kv_cost+suffix_length:2048`.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from policies import files
from policies.contract import Policy
from policies.deciders import Always, Decider, IslBounding, Never, SuffixLength

GROUP = "baton.policies"
OURS = "baton-gateway"
BUILT_IN = "built in"

DECIDERS: dict[str, Any] = {
    "always": Always,
    "never": Never,
    "suffix_length": SuffixLength,
    "isl_bounding": IslBounding,
}


class UnknownPolicy(ValueError):
    """No policy of that name; the message lists those there are, or says what is wrong with the one that was meant."""


class Origin(NamedTuple):
    """Where a policy comes from."""

    source: str
    """`built in`, a distribution's name, `module NAME`, or `file PATH`."""
    summary: str
    """The first line of its docstring."""

    @property
    def built_in(self) -> bool:
        return self.source == BUILT_IN


class _Found(NamedTuple):
    make: Callable[..., Any]
    source: str
    options: dict[str, Any]
    path: Path | None = None


def names() -> list[str]:
    """The policies that are installed."""
    return sorted(entry_points(group=GROUP).names)


def built_in() -> frozenset[str]:
    """The policies that Baton brings along."""
    found = entry_points(group=GROUP)
    return frozenset(one.name for one in found if one.dist is None or one.dist.name == OURS)


def deciders() -> list[tuple[str, str]]:
    """What may follow a policy's name after `+`, and what each does."""
    return [(name, summary(decider)) for name, decider in DECIDERS.items()]


def create(name: str, seed: int | None = None) -> Policy:
    """Make the policy that is called `name`; with this seed, if it takes one. Raises `UnknownPolicy`."""
    found = _find(name)
    options = found.options
    if "decider" in options and not _takes(found.make, "decider"):
        raise UnknownPolicy(f"policy {name!r}: it takes no decider: name it without `+`")
    if seed is not None and takes_seed(found.make):
        options = {**options, "seed": seed}
    try:
        made = found.make(**options)
    except Exception as error:
        if found.path is not None:
            line = files.line_of(error, found.path)
            why = f"{type(error).__name__}: {error}"
            raise UnknownPolicy(f"{found.path}:{line}: {why}: it must be made without arguments") from error
        raise UnknownPolicy(f"policy {name!r}: {error}: give module:Class that can be imported") from error
    if not isinstance(made, Policy):
        raise UnknownPolicy(f"policy {name!r}: {type(made).__name__} has no method place(request, fleet)")
    return made


def where(name: str) -> Origin:
    """Where the policy called `name` comes from, and what it says of itself. Raises `UnknownPolicy`."""
    found = _find(name)
    return Origin(found.source, summary(found.make))


def summary(of: object) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(of) or "").partition("\n")[0]


def takes_seed(make: Callable[..., object]) -> bool:
    """Whether a class, or what makes a policy, has a parameter `seed`."""
    return _takes(make, "seed")


def file_of(name: str) -> Path | None:
    """The file that `name` means; None if it means none."""
    base, plus, _ = name.rpartition("+")
    if plus and base.endswith(".py"):
        name = base
    return Path(name) if name.endswith(".py") or Path(name).is_absolute() else None


def _takes(make: Callable[..., object], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False


def _find(name: str) -> _Found:
    path = file_of(name)
    if path is not None:
        decider = name[len(str(path)) :] if name.startswith(str(path)) else ""
        options = {"decider": _decider(decider[1:])} if decider.startswith("+") else {}
        try:
            return _Found(files.load(path), f"file {path}", options, path)
        except files.BadFile as error:
            raise UnknownPolicy(str(error)) from error
    base, plus, decider = name.partition("+")
    options = {"decider": _decider(decider)} if plus else {}
    installed = next(iter(entry_points(group=GROUP, name=base)), None)
    try:
        if installed is not None:
            made_by = installed.dist.name if installed.dist is not None else OURS
            return _Found(installed.load(), BUILT_IN if made_by == OURS else made_by, options)
        if ":" in base:
            module, _, attribute = base.partition(":")
            ours = module.partition(".")[0] == "policies"
            return _Found(getattr(import_module(module), attribute), BUILT_IN if ours else f"module {module}", options)
    except (ImportError, AttributeError) as error:
        raise UnknownPolicy(f"policy {name!r}: {error}: give module:Class that can be imported") from error
    raise UnknownPolicy(
        f"policy {name!r} is not installed: use one of {', '.join(names())}, module:Class, or a .py file"
    )


def _decider(text: str) -> Decider:
    name, _, number = text.partition(":")
    if name not in DECIDERS:
        raise UnknownPolicy(f"decider {name!r} is not known: use one of {', '.join(DECIDERS)}")
    try:
        if number and int(number) < 0:
            raise ValueError
        made: Decider = DECIDERS[name](int(number)) if number else DECIDERS[name]()
    except (ValueError, TypeError):
        raise UnknownPolicy(f"decider {text!r}: write a number of tokens after the colon, or nothing") from None
    return made
