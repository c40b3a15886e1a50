"""A policy from a `.py` file: the file defines one class with `place(request, fleet)`.

If it defines several, `POLICY = "Name"` says which. Whatever is wrong is said with file, line and mend.
"""

import ast
import inspect
import sys
import traceback
from hashlib import sha256
from pathlib import Path
from types import ModuleType

MEND = "`baton policies new NAME` writes one to start from"


class BadFile(ValueError):
    """No policy in that file; the message names file, line and mend."""


def version(source: bytes) -> str:
    """What a file's content is known by."""
    return sha256(source).hexdigest()[:12]


def load(path: Path) -> type:
    """The policy class that a file defines. Runs the file. Raises `BadFile`."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}: give the path of a .py file") from None
    try:
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise BadFile(f"{path}:{line}: {getattr(error, 'msg', error)}: mend the line") from None
    module = ModuleType(f"baton_policy_files.{path.stem}", path.stem)
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        try:
            exec(code, module.__dict__)
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
            raise BadFile(f"{path}:{line_of(error, path)}: {why}: a policy's file must run by itself") from error
        return _one(module, path, source)
    except BadFile:
        if before is not None:
            sys.modules[module.__name__] = before
        else:
            del sys.modules[module.__name__]
        raise


def line_of(error: BaseException, path: Path) -> int:
    """The last line of the file that an exception came through; 1 if it is none of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if frame.filename == str(path)), 1)


def _one(module: ModuleType, path: Path, source: bytes) -> type:
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and callable(getattr(value, "place", None))
    }
    lines = {node.name: node.lineno for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    named = getattr(module, "POLICY", None)
    if named is not None:
        if named not in found:
            raise BadFile(f"{path}:1: POLICY = {named!r}, but no class of that name has place(): {_listed(found)}")
        found = {named: found[named]}
    if not found:
        raise BadFile(f"{path}:1: no class with a method place(request, fleet): {MEND}")
    if len(found) > 1:
        first, *_, last = found
        line = lines.get(last, 1)
        raise BadFile(f'{path}:{line}: {_listed(found)}: say which is meant, as in POLICY = "{first}"')
    name, chosen = found.popitem()
    place = inspect.getattr_static(chosen, "place")
    if inspect.isfunction(place):
        line = place.__code__.co_firstlineno if place.__code__.co_filename == str(path) else lines.get(name, 1)
        try:
            inspect.signature(place).bind(None, None, None)
        except TypeError:
            took = inspect.signature(place)
            raise BadFile(f"{path}:{line}: {name}.place{took}: make it place(self, request, fleet)") from None
        if inspect.iscoroutinefunction(place):
            raise BadFile(f"{path}:{line}: {name}.place is async: a policy does no I/O, write `def place`")
    return chosen


def _listed(found: dict[str, type]) -> str:
    return f"{', '.join(found)} have place()" if found else f"no class has; {MEND}"
