"""What workers counted, through all their lives: counters do not fall when one dies."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock

from gateway.telemetry.merge import merge


class Lives:
    """The metrics of worker `number` of `count`, alone and together with those of the others.

    Whoever is asked for all writes down in `folder` what each of them said. That stands for one that does not answer,
    and whoever comes in the place of one that died goes on from there.
    """

    def __init__(self, folder: Path, number: int, count: int) -> None:
        self._folder = folder
        self._number = number
        self._count = count
        self._writing = Lock()
        self._before = list(self._said([number]))

    def own(self, text: str) -> str:
        """Of this worker, which has counted `text` by itself."""
        return merge([text], self._before).decode() if self._before else text

    def all(self, own: str, others: Mapping[int, str]) -> str:
        """Of all workers: `own` is what this one counted, `others` what those say that answer."""
        saying = {**others, self._number: self.own(own)}
        with self._writing:
            for number, text in saying.items():
                new = self._path(number).with_suffix(f".{self._number}")
                new.write_text(text)
                new.replace(self._path(number))
        silent = self._said(number for number in range(self._count) if number not in saying)
        return merge(saying.values(), silent).decode()

    def _said(self, numbers: Iterable[int]) -> Iterator[str]:
        """What is written down of these."""
        for number in numbers:
            if self._path(number).exists():
                yield self._path(number).read_text()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.metrics"
