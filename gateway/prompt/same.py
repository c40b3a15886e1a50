"""Whether fastokens reads as `tokenizers` does: `python -m gateway.prompt.same FILE` prints a text that they read
differently, as JSON, or null.

It runs in a process of its own, so that the vocabulary of the one that is not used stays in nobody's memory.
"""

import json
import random
import subprocess
import sys
from array import array
from pathlib import Path

_CHECKS = 500
_SCRAPS = (
    *(" the", "Hello", "ING", "'s", "don't", "1234", " 3.14", "\n", "\n\n", "\t", "    ", "  \n ", "\r\n", "A" * 40),
    *("def f(x):", '{"a": [1, 2]}', "=>", "_", "__init__", "camelCase", "https://x.y/z?a=b&c=d", "…", "—"),
    *("é", "e\u0301", "ß", "\ufb01", "漢字", "かな", "한국어", "العربية", "हिन्दी", "🙂", "👩‍👩‍👧"),
    *("\u200b", "\u00a0", "\ufeff", "</s>", "<|im_end|>", "[INST]", "<unk>"),
)
_PATIENCE_S = 120.0


def differs(file: Path) -> str | None:
    """A text that the two read differently; None if none was found. Raises ValueError if one of them cannot load it."""
    command = [sys.executable, "-m", __name__, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    if done.returncode:
        raise ValueError(done.stderr.strip().rpartition("\n")[2])
    text: str | None = json.loads(done.stdout)
    return text


def compare(file: str) -> str | None:
    """The same, here."""
    import fastokens
    import tokenizers

    slow = tokenizers.Tokenizer.from_file(file)
    fast = fastokens.Tokenizer.from_file(file)
    for one in (slow, fast):
        one.no_truncation()
        one.no_padding()
    pick = random.Random(1)
    added = [token.content for token in slow.get_added_tokens_decoder().values()]
    scraps = [*_SCRAPS, *added[:200]]
    texts = ["".join(pick.choices(scraps, k=pick.randrange(1, 30))) for _ in range(_CHECKS)]
    for special in (False, True):
        right = slow.encode_batch_fast(texts, add_special_tokens=special)
        for text, encoding in zip(texts, right, strict=True):
            ids, _ = fast.encode_batch_flat([text], add_special_tokens=special)
            if array("I", encoding.ids).tobytes() != bytes(ids):
                return text
    return None


if __name__ == "__main__":
    json.dump(compare(sys.argv[1]), sys.stdout)
