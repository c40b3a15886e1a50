"""A model's folder for the double's tokenizer: a gateway that is given it reads prompts exactly as doubles do."""

import json
import os
from pathlib import Path

from engines.double import tokens

CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% if message.tool_calls %}{{ message.tool_calls }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WHITE = b" \t\n\r\x0b\x0c"


def write_folder(folder: Path) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns the folder. 3 MB, a tenth of a second.

    A byte-pair tokenizer without merges, every id named: so the fast library takes it as it takes real ones. Raises
    `FileExistsError`, and changes nothing, where there is another model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letter = _letters()
    white = "".join(letter[byte] for byte in _WHITE)
    special = [
        {
            "id": token,
            "content": text.decode(),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, text in tokens.SPECIALS.items()
    ]
    pieces: dict[str, int] = {}
    for token in range(tokens.IM_START, tokens.VOCABULARY):
        pieces.setdefault(
            "".join(letter[byte] for byte in tokens.piece(token)), token
        )  # a space goes with a word first
    pieces.pop("", None)
    pieces |= {f"<unused{token}>": token for token in {*range(tokens.VOCABULARY)} - {*pieces.values()}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                {
                    "type": "Split",
                    "pattern": {"Regex": f"{letter[0x20]}?[^{white}]{{1,2}}|[{white}]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": pieces, "merges": [], "ignore_merges": True, "byte_fallback": False},
    }
    config = {"chat_template": CHAT_TEMPLATE, "eos_token": tokens.SPECIALS[tokens.IM_END].decode()}
    texts = {folder / "tokenizer.json": json.dumps(tokenizer), folder / "tokenizer_config.json": json.dumps(config)}
    for path, text in texts.items():
        if path.exists() and path.read_text() != text:
            raise FileExistsError(f"{path} is of another model: give a folder of the doubles' own")
    for path, text in texts.items():
        whole = path.with_suffix(f".{os.getpid()}")  # another process may write it, or read it, just now
        whole.write_text(text)
        whole.replace(path)
    return folder


def _letters() -> list[str]:
    """What stands for each byte in byte-level vocabularies: its own character if it can be seen, else one above 255."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(hidden)) for byte in range(256)]
