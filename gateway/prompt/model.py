"""A model's folder: its tokenizer, its special tokens, its chat templates; and models that need another road."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from gateway.prompt.environment import ChatTemplate, compiled

_OWN_RENDERERS = ("gpt_oss", "deepseek_v32", "deepseek_v4", "kimi_k3", "inkling", "cohere2")
"""Families whose engine renders messages in Python code of its own, not by a template."""

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class UnreadableModel(Exception):
    """Prompts of this model cannot be read here; the message says why."""


class Model(NamedTuple):
    """What a folder holds."""

    tokenizer: Path
    special: dict[str, str]
    """Special tokens by the names that templates know them by."""
    template: ChatTemplate | None
    tool_template: ChatTemplate | None
    """For requests with tools, where it is another one."""


def load(folder: Path, chat_template: str | None = None) -> Model:
    """Read a folder; `chat_template` takes the place of its own. Raises `UnreadableModel`."""
    tokenizer = folder / "tokenizer.json"
    if (folder / "tekken.json").exists() or list(folder.glob("tokenizer.model.v*")):
        raise UnreadableModel(f"{folder}: mistral-common renders and tokenises for this model")
    if not tokenizer.exists():
        raise UnreadableModel(f"{folder} has no tokenizer.json")
    kind = _json(folder / "config.json").get("model_type", "")
    if kind.startswith(_OWN_RENDERERS):
        raise UnreadableModel(f"{folder}: engines render messages of {kind} in code of their own")
    for name in ("processor_config.json", "chat_template.json"):
        if "chat_template" in _json(folder / name):
            raise UnreadableModel(f"{folder}: the chat template of its processor ({name}) wins over the tokenizer's")
    config = _json(folder / "tokenizer_config.json")
    special = {name: text for name in _SPECIAL if (text := _token(config.get(name)))}
    templates = {"default": chat_template} if chat_template is not None else _templates(folder, config)
    try:
        made = {name: compiled(source) for name, source in templates.items() if source}
    except TemplateError as error:
        raise UnreadableModel(f"{folder}: chat template: {error}") from None
    default = made.get("default")
    return Model(tokenizer, special, default, made.get("tool_use", default))


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The folder's templates by name: a file of its own wins over the configuration."""
    file = folder / "chat_template.jinja"
    if file.exists():
        more = {path.stem: path.read_text() for path in (folder / "additional_chat_templates").glob("*.jinja")}
        return {"default": file.read_text(), **more}
    found = config.get("chat_template")
    if isinstance(found, list):
        return {one["name"]: one["template"] for one in found}
    return {"default": found} if found else {}


def _token(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UnreadableModel(f"{file}: {error}") from None
    return found if isinstance(found, dict) else {}
