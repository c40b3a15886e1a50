"""Finds and loads the tokenizer of each model, from a folder."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from engines.fleet import Fleet as FleetFile
from gateway.prompt.reader import Reader, UnreadableModel

log = logging.getLogger(__name__)

MOST_LEARNT = 1000

MEND = "give its folder with --tokenizer, or as `tokenizer` of the model in the fleet file"


class Folders:
    """Tokenizers by model; `folders` names a folder or a hub id that this machine has in its cache."""

    def __init__(self, folders: Mapping[str, str], default: str = "") -> None:
        self._folders = folders
        self._learnt: dict[str, str] = {}
        self._default = default

    @classmethod
    def of(cls, file: FleetFile, default: str = "") -> Self:
        """Those that a fleet file names."""
        made = cls({}, default)
        made.know(file)
        return made

    def know(self, file: FleetFile) -> None:
        """Take over what a fleet file says; a tokenizer that is loaded stays."""
        self._folders = {model.name: model.tokenizer or model.path for model in file.models.values()}

    def learn(self, model: str, where: str) -> None:
        """Of an engine that registered itself; what the file says goes before."""
        if where and len(self._learnt) < MOST_LEARNT:
            self._learnt[model] = where

    async def reader(self, model: str) -> tuple[Reader | None, str]:
        """The model's reader; or none, and why. Loads in a thread: some hundred ms."""
        named = (self._folders.get(model) or self._learnt.get(model), self._default)
        why = ""
        for where in filter(None, named):  # a name in the file may be no place, and `--tokenizer` one
            try:
                reader = await asyncio.to_thread(Reader.load, _folder(where))
            except UnreadableModel as error:
                why = why or str(error)
            else:
                log.info("model %s: tokenizer %s (%s)", model, where, reader.kind)
                return reader, ""
        if why:
            log.warning("model %s: %s", model, why)
        return None, why or f"no tokenizer: {MEND}"


def _folder(where: str) -> Path:
    """A folder as it is, a hub id as the folder in which the engines' download put it. Raises `UnreadableModel`."""
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download  # 7 MB that are not needed for folders
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(where, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
        raise UnreadableModel(f"{where} is neither a folder nor in this machine's model cache: {MEND}") from None
