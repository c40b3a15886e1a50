"""Takes over what was changed in the fleet file, in settings and in API keys, while requests run.

All of it is read and checked before any of it counts; what cannot be used is refused, said and shown, and what was
there goes on.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engines.fleet import FleetError
from engines.model.profile import UnknownProfile
from gateway.admission.keys import Keys
from gateway.fleet import wanted as wanting
from gateway.fleet.roster import Roster
from gateway.launch import Launch
from gateway.prompt.tokenizers import Folders
from gateway.settings import LIVE, Effective, Settings, SettingsError
from gateway.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks at the fleet file; it is read when two of them find the same change."""
FILE = "fleet file"


class Reloaded(msgspec.Struct):
    """What a reload changed."""

    fleet: str = "nothing changed"
    settings: dict[str, Any] = {}
    """Settings that have another value now."""
    restart: list[str] = []
    """Settings that were changed and count only after a restart."""
    keys: int = 0
    """API keys that are good now."""


class Reloading:
    """Of one gateway process. `refused` says why the files as they are now cannot be used; empty if they can."""

    def __init__(
        self,
        launch: Launch,
        settings: Settings,
        roster: Roster,
        keys: Keys,
        folders: Folders | None,
        metrics: Metrics,
        applied: Callable[[], None],
    ) -> None:
        """`applied` is called when `settings` have changed."""
        self._launch = launch
        self._settings = settings
        self._roster = roster
        self._keys = keys
        self._folders = folders
        self._metrics = metrics
        self._applied = applied
        self._stamp = self._look()
        self.refused = ""
        self._effective: Effective | None = None

    def reload(self) -> Reloaded:
        """Read everything again. Raises `FleetError`, `SettingsError`, `UnknownProfile`, and changes nothing then."""
        self._stamp = self._look()
        try:
            file, effective = self._launch.read()
            wanted, links = wanting.of_file(file), wanting.links_of(file)
            keys = Keys.load(effective.settings.api_keys_file)
        except (FleetError, SettingsError, UnknownProfile) as error:
            self.refused = str(error)
            self._metrics.reloads("refused").inc()
            log.error("reload refused, everything stays as it was: %s", error)
            raise
        self.refused = ""
        self._effective = effective
        self._metrics.reloads("applied").inc()
        changed = self._change(effective.settings)
        self._keys.become(keys)
        if self._folders is not None:
            self._folders.know(file)
        done = Reloaded(
            fleet=str(self._roster.tell(FILE, wanted, links)),
            settings={name: getattr(self._settings, name) for name in changed},
            restart=[name for name in self._differing(effective.settings) if name not in LIVE],
            keys=len(keys),
        )
        log.info("reloaded: %s; settings: %s", done.fleet, ", ".join(changed) or "the same")
        if done.restart:
            log.warning("changed, and in force only after a restart: %s", ", ".join(done.restart))
        return done

    def _differing(self, settings: Settings) -> list[str]:
        mine = self._settings
        return [name for name in Settings.model_fields if getattr(mine, name) != getattr(settings, name)]

    def _change(self, settings: Settings) -> list[str]:
        changed = [name for name in self._differing(settings) if name in LIVE]
        for name in changed:
            setattr(self._settings, name, getattr(settings, name))
        if "log_level" in changed:
            logging.getLogger().setLevel(settings.log_level.upper())
        if changed:
            self._applied()
        return changed

    def origin(self) -> dict[str, str]:
        """Where each setting comes from; nothing if that cannot be read now."""
        if self._effective is None:
            with suppress(FleetError, SettingsError):
                self._effective = self._launch.read()[1]
        return self._effective.origin if self._effective is not None else {}

    def again(self) -> None:
        """Reload; a refusal has been said and is shown."""
        with suppress(FleetError, SettingsError, UnknownProfile):
            self.reload()

    async def watch(self) -> None:
        """Reload when the fleet file was changed; until cancelled."""
        before = self._stamp
        while True:
            await asyncio.sleep(POLL_S)
            now = self._look()
            if now is not None and now == before and now != self._stamp:
                self.again()
            before = now

    def _look(self) -> tuple[int, int, int] | None:
        """Another value if the file was changed; None while there is none."""
        try:
            stat = Path(self._launch.path).stat() if self._launch.path is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat is not None else None
