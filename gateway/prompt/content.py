"""Whether a chat template loops over the parts of a message's content, or takes it as a string.

An engine decides the same way, by the template's syntax tree; a template that sees the other form renders another text.
Source: vLLM `renderers/hf.py`, `_detect_content_format`.
"""

from collections.abc import Iterator

from jinja2 import nodes


def takes_parts(tree: nodes.Template) -> bool:
    """True for `for part in message.content`, also through `set`, filters, slices and macros."""
    messages = set(_aliases(tree, "messages"))
    items = {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_is(loop.iter, name) for name in messages)
    }
    in_macros: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        bound = set(_bound_to_content(tree, macro, items))
        for loop in macro.find_all(nodes.For):
            in_macros[id(loop)] = in_macros.get(id(loop), set()) | bound
    return any(_over_content(loop, items, in_macros.get(id(loop))) for loop in tree.find_all(nodes.For))


def _over_content(loop: nodes.For, items: set[str], bound: set[str] | None) -> bool:
    """`bound`: parameters of the macro around the loop that stand for content; None outside of macros."""
    if any(_is(loop.iter, name, "content") for name in items):
        return True
    if not isinstance(loop.iter, nodes.Name):
        return False
    return loop.iter.name == "content" if bound is None else loop.iter.name in bound


def _bound_to_content(tree: nodes.Template, macro: nodes.Macro, items: set[str]) -> Iterator[str]:
    """The macro's parameters that some call gives a message's content."""
    names = [argument.name for argument in macro.args]
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
            continue
        given = [*zip(names, call.args, strict=False), *((k.key, k.value) for k in call.kwargs if k.key in names)]
        for name, value in given:
            if any(_is(value, item, "content") for item in items):
                yield name


def _aliases(tree: nodes.Template, name: str) -> Iterator[str]:
    """A variable, and those that are set to it or to a part of it."""
    yield name
    known = [name]
    while known:
        one = known.pop(0)
        for assign in tree.find_all(nodes.Assign):
            if _is(assign.node, one) and isinstance(assign.target, nodes.Name):
                yield assign.target.name
                if assign.target.name != one:
                    known.append(assign.target.name)


def _is(node: nodes.Node, name: str, key: str = "") -> bool:
    """Whether an expression is the variable (or its item `key`), perhaps filtered, tested or sliced."""
    if isinstance(node, nodes.Filter):
        return node.node is not None and _is(node.node, name, key)
    if isinstance(node, nodes.Test):
        return _is(node.node, name, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is(node.node, name, key)
    if not key:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
    if isinstance(node, nodes.Getitem):
        return _is(node.node, name) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and node.attr == key and _is(node.node, name)
