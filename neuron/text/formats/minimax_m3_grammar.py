"""Grammars for arguments as MiniMax M3 writes them: values in tags, objects and lists too.

Members come in the order of the schema's properties, and no others come than these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron.text.formats.lark import Lark
from neuron.text.formats.members import NOTES, Unfit, fitting, members, named, several
from neuron.text.formats.parameter_grammar import (
    ANY_NAME,
    ANY_TEXT,
    NAME,
    Tags,
    held_text,
    split,
    string,
)
from neuron.text.formats.schema_types import types_of

MARK = "]<]minimax[>["
TAG, INVOKE, END_CALL = f"{MARK}<", f'{MARK}<invoke name="', f"{MARK}</tool_call>"
ITEM = "item"
ARRAY_KEYS = {"type", "items", "minItems", "maxItems"}
MAX_DEPTH = 12  # of schemas in each other


def arguments(schema: Mapping[str, Any], lark: Lark) -> str:
    """The arguments of a call, valid against `schema`; where no grammar can be made of it, any arguments."""
    others = schema.get("additionalProperties", True)
    if not schema.get("properties") and others is not False:
        return several(
            _any_element(others, schema, lark),
            schema.get("minProperties", 0),
            schema.get("maxProperties"),
            lark,
        )
    try:
        return _members(schema, schema, lark, MAX_DEPTH)
    except Unfit:
        return several(_any_element(True, {}, lark), 0, None, lark)


def _members(schema: Mapping[str, Any], root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    fit = fitting(schema, lambda key: NAME.fullmatch(key) and key != ITEM and not key.startswith("/"))
    if not named(fit):
        raise Unfit
    return members(fit, lambda key, each: _element(key, each, root, lark, depth), lark)


def _any_element(schema: Any, root: Mapping[str, Any], lark: Lark) -> str:
    """A value in tags of any name. That in the end tag is not looked at: a grammar cannot remember it."""
    name = lark.terminal(ANY_NAME)
    opening, tags = f'{lark.text(TAG)} {name} ">"', Tags(TAG, ">", f"{MARK}</", MARK)
    return f'({_valued(opening, tags, schema, root, lark, MAX_DEPTH)}) {name} ">"'


def _element(key: str, schema: Any, root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    """A value in tags of this name."""
    tags = Tags(TAG, ">", f"{MARK}</{key}>", MARK)
    return _valued(lark.text(f"{TAG}{key}>"), tags, schema, root, lark, depth)


def _valued(opening: str, tags: Tags, schema: Any, root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    """`opening`, a value, and what follows it."""
    if (text := held_text(schema, tags, lark)) is not None:
        return f"{opening} {text}"
    try:
        strings, others = split(schema, root)
    except Unfit:
        strings, others = [ANY_TEXT], []
    ways = []
    if strings:
        ways.append(f"{opening} {string(strings, tags, lark, alone=not others)}")
    for other in others:
        for kind in sorted(types_of(other, root)):
            value = _value({**other, "type": kind}, kind, root, lark, depth)
            ways.append(f"{opening} {value} {lark.text(tags.after)}")
    return " | ".join(ways)


def _value(schema: Mapping[str, Any], kind: str, root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    """A value of this type that is no string. What tags cannot tell is JSON, which is read as well."""
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
    if kind == "object" and schema.get("properties") and depth:
        try:
            return f"({_members(schema, root, lark, depth - 1)})"
        except Unfit:
            pass
    items = schema.get("items", {})
    if kind != "array" or not depth or items in (True, {}) or not schema.keys() <= ARRAY_KEYS | NOTES:
        return lark.json({**schema, **definitions})
    item = _element(ITEM, items, root, lark, depth - 1)
    return several(item, schema.get("minItems", 0), schema.get("maxItems"), lark)
