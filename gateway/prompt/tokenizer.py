"""Text to token ids: fastokens, which is vLLM's own fast backend, where it agrees with `tokenizers`; else that one.

Both let other threads run while they work (`tokenizers` only in its batch calls, which is why no other is used here).
"""

import logging
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import fastokens

from gateway.prompt.same import differs

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 20
"""Of text segments and their ids: requests of one conversation repeat them. More of it saves little: what is new is
read at 100 MB/s."""

QUICK_BYTES, SLOW_BYTES = 256 << 10, 16 << 10
"""A text longer than this takes more than some milliseconds: with fastokens, with `tokenizers`."""


class Tokenizer:
    """One tokenizer. `kind` says which library does the work, and why if it is the slower one."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError if `file` is not a `tokenizer.json` that can be loaded."""
        self._fast: fastokens.Tokenizer | None = None
        try:
            fast = fastokens.Tokenizer.from_file(str(file))
            text = differs(file)
        except Exception as error:  # the library raises bare exceptions
            self.kind = f"tokenizers, since fastokens refuses it: {error}"
        else:
            if text is None:
                fast.no_truncation()
                fast.no_padding()
                fast.enable_segment_cache(CACHE_BYTES)
                self._fast, self.kind, self.heavy_bytes = fast, "fastokens", QUICK_BYTES
                return
            self.kind = f"tokenizers, since fastokens reads {text[:40]!r} differently"
            log.warning("%s: %s", file, self.kind)
        self._slow = _slow(file)
        self.heavy_bytes = SLOW_BYTES

    def encode(self, text: str, special: bool) -> bytes:
        """Token ids as little-endian uint32; `special` adds what the post-processor puts around a prompt."""
        if self._fast is not None:
            return bytes(self._fast.encode_batch_flat([text], add_special_tokens=special)[0])
        return array("I", self._slow.encode_batch_fast([text], add_special_tokens=special)[0].ids).tobytes()


def _slow(file: Path) -> "tokenizers.Tokenizer":
    """The other library's, loaded only where it is needed. Raises ValueError."""
    import tokenizers

    try:
        slow = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{file}: {error}") from None
    slow.no_truncation()
    slow.no_padding()
    return slow
