"""`baton engines upgrade`: from the fleet file that is followed to another one; what is half done outlives us."""

import hashlib
import logging
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from engines.checks import CannotStart
from engines.control import Refused, Say
from engines.fleet import Fleet, FleetError
from engines.keeper import Keeper, content
from engines.rollout import alone
from engines.supervision import Supervision

log = logging.getLogger(__name__)


class Halfway(msgspec.Struct, frozen=True):
    """An upgrade that has not ended, as it is kept on disk."""

    followed: str
    """Digest of the fleet file that was followed: with another one this is forgotten."""
    path: str
    """Of the new one, and what stood in it."""
    text: str
    done: tuple[str, ...]
    """Engines that run as there, or have ended."""


class Upgrade:
    """Upgrades of one host, one at a time. `record`: the file for what is half done."""

    def __init__(self, keeper: Keeper, followed: Path, record: Path) -> None:
        self._keeper = keeper
        self._followed = followed
        self._record = record
        self._running = False
        self._halted = False

    def resume(self) -> str:
        """Before anything is started: let engines be as an upgrade left them. Returns that in words. Raises
        `CannotStart`."""
        left = self._left()
        if left is None:
            return ""
        try:
            self._keeper.mix(_parse(left.text, left.path), left.done)
        except FleetError as error:
            log.warning("%s: %s", self._record, error)
            return ""
        return f"{', '.join(left.done)} as {left.path} says: `baton engines upgrade {left.path}` goes on from there"

    def _left(self) -> Halfway | None:
        try:
            left = msgspec.json.decode(self._record.read_bytes(), type=Halfway)
        except (OSError, msgspec.DecodeError):
            return None
        return left if left.followed == _digest(self._followed) else None

    def halt(self) -> str:
        """Stop the one that runs before its next step."""
        if not self._running:
            raise Refused("no upgrade runs here")
        self._halted = True
        return "stops after what it is at"

    async def run(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        """Do what `baton engines upgrade` asks for; where it stands then. Raises `Refused`."""
        if self._running:
            raise Refused("another upgrade runs here")
        path, text = str(request["path"]), str(request["text"])
        keeper = self._keeper
        try:
            fleet = _parse(text, path)
            rules = Supervision.model_validate({**fleet.supervisor.model_dump(), **request.get("rules", {})})
            steps = keeper.plan(fleet)
        except (FleetError, CannotStart) as error:
            raise Refused(str(error)) from None
        except ValidationError as error:
            raise Refused("; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())) from None
        warnings = [why for step in steps if (why := alone(step))]
        if request.get("dry_run"):
            return {"plan": [{"do": step.verb, "engines": step.names} for step in steps], "warnings": warnings}
        for why in warnings:
            say(why)
        followed = _digest(self._followed)
        before = set(left.done) if (left := self._left()) is not None and left.text == text else set()

        def note(done: tuple[str, ...]) -> None:
            self._save(Halfway(followed, path, text, tuple(sorted({*before, *done}))))

        self._running, self._halted = True, False
        try:
            outcome = await keeper.roll(fleet, say, rules, lambda: self._halted, note)
        finally:
            self._running = False
        if not outcome.left:
            self._settle(followed, text, say)
        return outcome._asdict()

    def _save(self, left: Halfway) -> None:
        if not left.done:
            self._record.unlink(missing_ok=True)
            return
        new = self._record.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(left))
        new.replace(self._record)

    def _settle(self, followed: str, text: str, say: Say) -> None:
        """All engines are as the new file says: it takes the place of the one that is followed."""
        file = self._followed
        if text.encode() == content(file):
            self._record.unlink(missing_ok=True)
            return
        if _digest(file) != followed:
            say(f"{file} was changed meanwhile, and is followed: it is not replaced")
            self._record.unlink(missing_ok=True)
            return
        try:
            new = file.with_name(f"{file.name}.new")
            new.write_text(text)
            new.chmod(file.stat().st_mode & 0o777)
            file.with_name(f"{file.name}.before").write_bytes(content(file))
            new.replace(file)
        except OSError as error:
            say(f"{file} cannot be replaced ({error.strerror}): do it by hand; until then it is remembered here")
            return
        self._record.unlink(missing_ok=True)
        say(f"{file} is the new one now; the old one is {file.name}.before")


def _digest(file: Path) -> str:
    return hashlib.sha256(content(file)).hexdigest()


def _parse(text: str, path: str) -> Fleet:
    try:
        return Fleet.parse(tomllib.loads(text), path)
    except tomllib.TOMLDecodeError as error:
        raise FleetError(f"{path}: not TOML: {error}") from None
