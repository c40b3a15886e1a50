"""How a gateway was started, so that what was read then can be read again: command line, fleet file, environment."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.fleet import Fleet as FleetFile
from engines.fleet import FleetError
from gateway.settings import Effective


@dataclass(frozen=True)
class Launch:
    """`file` is the fleet that engine URLs on the command line make; with a `path` it is read from there."""

    path: Path | None = None
    file: FleetFile | None = None
    flags: dict[str, Any] = field(default_factory=dict)

    def read(self) -> tuple[FleetFile, Effective]:
        """The fleet and the settings as they are now. Raises `FleetError`, `SettingsError`."""
        file = self.file if self.path is None else FleetFile.load(self.path)
        if file is None:
            raise FleetError("this gateway was given its engines by hand: there is nothing to read again")
        return file, Effective.gather(self.flags, file.gateway, str(self.path))
