"""Tokenizers for tests: the double's own, read in the gateway's process as a model folder would be."""

from array import array

import msgspec

from engines.double import tokens
from gateway.prompt.apis import CHAT, COMPLETIONS, Api
from gateway.prompt.body import Fields
from gateway.prompt.prompts import PromptReader
from gateway.prompt.reader import Prompt


class DoubleReader:
    """Reads as a double does; `shift` other than 0 makes it read something else."""

    def __init__(self) -> None:
        self.shift = 0
        self.extra = 0

    def read(self, api: Api, fields: Fields) -> Prompt:
        if api is CHAT:
            tools = msgspec.json.decode(fields["tools"]) if "tools" in fields else None
            ids = tokens.render(msgspec.json.decode(fields["messages"]), tools=tools)
        elif api is COMPLETIONS:
            prompt = msgspec.json.decode(fields["prompt"])
            ids = tokens.encode(prompt) if isinstance(prompt, str) else prompt
        else:
            return Prompt(None, 0, f"{api.name} is not read here")
        ids = [token + self.shift for token in ids] + [9] * self.extra
        return Prompt(array("I", ids).tobytes(), len(ids))

    def heavy(self, api: Api, fields: Fields) -> bool:
        return False


class DoubleTokenizers:
    """Every model has the double's tokenizer."""

    def __init__(self, reader: PromptReader | None = None) -> None:
        self.one = reader or DoubleReader()

    async def reader(self, model: str) -> tuple[PromptReader, str]:
        return self.one, ""
