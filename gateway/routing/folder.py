"""A watched folder: its newest `.py` file that passes its examination is the policy.

Remove the file and the next newest takes over; without any, it is the policy of the settings again. A file that fails
is passed over until it is changed or touched. Files that begin with `_`, `.` or `test_` do not count.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path

from gateway.routing.entry import Entry, Labels, Stamp
from gateway.routing.slot import Slot
from policies.check import examine
from policies.files import version
from policies.registry import UnknownPolicy, create

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks at the folder."""
_PASSED_OVER = ("_", ".", "test_")


class Folder:
    """Keeps a slot in step with a folder; nothing of it runs in the event loop's thread but the swap."""

    def __init__(self, path: Path, slot: Slot, labels: Labels) -> None:
        self._path = path
        self._slot = slot
        self._labels = labels
        self._seen: dict[Path, tuple[tuple[int, int], Stamp]] = {}
        self._first = True

    async def watch(self) -> None:
        """Look again and again; until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # a folder that cannot be read now may be read later
                log.exception("policies folder %s", self._path)
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Make the newest good file the policy."""
        found, settled = await asyncio.to_thread(self._listing)
        slot = self._slot
        for path in slot.refused.keys() - found.keys():
            del slot.refused[path]
        for path in sorted(found, key=lambda path: found[path], reverse=True):
            stamp, live = found[path], slot.entry
            if path == live.path and stamp.version == live.version:
                return
            refusal = slot.refused.get(path)
            new = refusal is None or refusal.stamp != stamp
            if new and (path not in settled or await self._take(path, stamp)):
                return
            if path == live.path:
                return  # what was good of it stays until it is good again
        if slot.entry.path is not None and slot.entry.path not in found:
            slot.leave()

    def _listing(self) -> tuple[dict[Path, Stamp], set[Path]]:
        """All files as they are, and those that are not being written just now."""
        now: dict[Path, tuple[tuple[int, int], Stamp]] = {}
        settled = set()
        for path in self._path.glob("*.py"):
            if path.name.startswith(_PASSED_OVER):
                continue
            try:
                stat = path.stat()
                state = (stat.st_mtime_ns, stat.st_size)
                before = self._seen.get(path)
                if before is not None and before[0] == state:
                    now[path] = before
                    settled.add(path)
                else:
                    now[path] = (state, Stamp(stat.st_mtime_ns, version(path.read_bytes())))
                    if self._first:
                        settled.add(path)
            except OSError:
                continue  # it was just removed
        self._seen, self._first = now, False
        return {path: stamp for path, (_, stamp) in now.items()}, settled

    async def _take(self, path: Path, stamp: Stamp) -> bool:
        """Examine a file and let it in, or refuse it. False if it is refused, or not what it was any more."""
        label = self._labels.of(path.stem)
        make = partial(create, str(path))
        report = await asyncio.to_thread(examine, make)
        try:
            if not report.good:
                more = f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""
                raise UnknownPolicy(f"{report.errors[0]}{more}; `baton policies check {path}` shows all")
            made = await asyncio.to_thread(make)
            if version(await asyncio.to_thread(path.read_bytes)) != stamp.version:
                return True  # written again meanwhile: the next look takes it up
        except (UnknownPolicy, OSError) as error:
            self._slot.refuse(path, stamp, label, str(error))
            return False
        self._slot.swap(Entry(path.stem, label, made.place, True, path, stamp))
        return True
