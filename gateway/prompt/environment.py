"""Chat templates, compiled in the environment that transformers gives them.

Source: transformers `utils/chat_template_utils.py`; vLLM `renderers/hf.py` for which variables a template gets.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.prompt.content import takes_parts


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote; for rendering it is nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_OF_DICTS = frozenset(dir(dict))


class _Environment(ImmutableSandboxedEnvironment):
    """Finds `message.role` in a dict without looking for an attribute first, which fails by an exception each time."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is not dict or attribute in _OF_DICTS:
            return super().getattr(obj, attribute)
        try:
            return obj[attribute]
        except KeyError:
            return self.undefined(obj=obj, name=attribute)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON: jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    """The engine's local time; both machines must agree on the zone."""
    return datetime.now().strftime(form)


def _environment() -> _Environment:
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


class ChatTemplate:
    """One template, compiled, and what it tells of itself."""

    def __init__(self, source: str) -> None:
        """Raises `jinja2.TemplateError` if it cannot be compiled."""
        environment = _environment()
        tree = environment.parse(source)
        self.source = source
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        """Names it takes from outside; arguments of other names never reach it."""
        self.parts = takes_parts(tree)
        """Whether it wants a message's content as a list of parts."""
        self.developer = '"developer"' in source or "'developer'" in source
        """Whether it knows the role `developer`."""
        self._template = environment.from_string(source)
        self._globals = dict(self._template.globals)
        self._template.globals = {}  # they are among the variables, which spares each rendering two copies

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. Raises whatever the template does."""
        template = self._template
        return "".join(template.root_render_func(template.new_context({**self._globals, **variables}, shared=True)))


@lru_cache(32)
def compiled(source: str) -> ChatTemplate:
    """A template, compiled once. Raises `jinja2.TemplateError`."""
    return ChatTemplate(source)
