"""Text to token ids: fastokens, which is vLLM's own fast backend, where it agrees with `tokenizers`; else that one.

Both let other threads run while they work (`tokenizers` only in its batch calls, which is why no other is used here).
"""

import logging
import random
from array import array
from pathlib import Path

import fastokens
import tokenizers

log = logging.getLogger(__name__)

CACHE_BYTES = 256 << 20
"""Of text segments and their ids: requests of one conversation repeat them."""

_CHECKS = 500
_SCRAPS = (
    *(" the", "Hello", "ING", "'s", "don't", "1234", " 3.14", "\n", "\n\n", "\t", "    ", "  \n ", "\r\n", "A" * 40),
    *("def f(x):", '{"a": [1, 2]}', "=>", "_", "__init__", "camelCase", "https://x.y/z?a=b&c=d", "…", "—"),
    *("é", "e\u0301", "ß", "\ufb01", "漢字", "かな", "한국어", "العربية", "हिन्दी", "🙂", "👩‍👩‍👧"),
    *("\u200b", "\u00a0", "\ufeff", "</s>", "<|im_end|>", "[INST]", "<unk>"),
)


class Tokenizer:
    """One tokenizer. `kind` says which library does the work, and why if it is the slower one."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError if `file` is not a `tokenizer.json` that can be loaded."""
        try:
            self._slow = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{file}: {error}") from None
        self._slow.no_truncation()
        self._slow.no_padding()
        self._fast: fastokens.Tokenizer | None = None
        self.kind = "tokenizers"
        try:
            fast = fastokens.Tokenizer.from_file(str(file))
            fast.no_truncation()
            fast.no_padding()
        except Exception as error:
            self.kind = f"tokenizers, since fastokens refuses it: {error}"
            return
        if (text := self._differs(fast)) is not None:
            self.kind = f"tokenizers, since fastokens reads {text[:40]!r} differently"
            log.warning("%s: %s", file, self.kind)
            return
        fast.enable_segment_cache(CACHE_BYTES)
        self._fast = fast
        self.kind = "fastokens"

    def encode(self, text: str, special: bool) -> bytes:
        """Token ids as little-endian uint32; `special` adds what the post-processor puts around a prompt."""
        if self._fast is not None:
            return bytes(self._fast.encode_batch_flat([text], add_special_tokens=special)[0])
        return array("I", self._slow.encode_batch_fast([text], add_special_tokens=special)[0].ids).tobytes()

    def _differs(self, fast: "fastokens.Tokenizer") -> str | None:
        """A text that the two read differently, out of some hundred; None if there is none."""
        pick = random.Random(1)
        added = [token.content for token in self._slow.get_added_tokens_decoder().values()]
        scraps = [*_SCRAPS, *added[:200]]
        texts = ["".join(pick.choices(scraps, k=pick.randrange(1, 30))) for _ in range(_CHECKS)]
        for special in (False, True):
            right = self._slow.encode_batch_fast(texts, add_special_tokens=special)
            for text, encoding in zip(texts, right, strict=True):
                ids, _ = fast.encode_batch_flat([text], add_special_tokens=special)
                if array("I", encoding.ids).tobytes() != bytes(ids):
                    return text
        return None
