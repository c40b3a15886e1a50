"""Imports compiled modules in place of their sources, as long as those are what was compiled."""

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
"""Where the packages lie."""

BUILT = Path(sysconfig.get_path("purelib")) / "baton_native"
"""Where the compiled modules of this environment lie."""

ROOMS = ("gateway", "policies", "engines/fleet.py")
"""What compiled modules are made of: a constant of any of these files may be part of them."""

SWITCH = "BATON_NATIVE"
"""Environment variable that turns them off: 0."""

off_because = "not looked for yet"
"""Why sources are interpreted; empty if compiled modules are used."""


def digest(root: Path, rooms: Sequence[str] = ROOMS) -> str:
    """What stands in all sources below `root` that compiled modules depend on."""
    total = hashlib.sha256()
    for room in rooms:
        place = root / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(str(path.relative_to(root)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()


class Finder:
    """Finds the modules of one build, by name."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(name)
        return spec_from_file_location(name, file) if file is not None else None


def stands(built: Path, root: Path, rooms: Sequence[str] = ROOMS) -> tuple[dict[str, str], str]:
    """The compiled modules that may be used, and why there are none."""
    try:
        manifest = json.loads((built / "manifest.json").read_bytes())
        files = {name: str(built / file) for name, file in manifest["files"].items()}
    except FileNotFoundError:
        return {}, "nothing was compiled here"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return {}, f"{built} cannot be read: {error}"
    if manifest.get("suffix") != EXTENSION_SUFFIXES[0]:
        return {}, "it was compiled for another Python"
    if manifest.get("digest") != digest(root, rooms):
        return {}, "sources changed since they were compiled"
    return files, ""


def use() -> None:
    """Use what was compiled, where it stands for the sources."""
    global off_because
    if os.environ.get(SWITCH) == "0":
        off_because = f"{SWITCH}=0"
        return
    files, off_because = stands(BUILT, ROOT)
    if files:
        sys.meta_path.insert(0, Finder(files))
