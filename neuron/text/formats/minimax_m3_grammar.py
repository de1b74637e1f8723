"""Grammars for arguments as MiniMax M3 writes them: values in tags, objects and lists too.

Members come in the order of the schema's properties, and no others come than these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import (
    ANY_NAME,
    ANY_TEXT,
    NAME,
    NOTES,
    OBJECT_KEYS,
    Tags,
    Unfit,
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
    try:
        if not schema.get("properties") and schema.get("additionalProperties", True) is not False:
            raise Unfit
        return _members(schema, schema, lark, MAX_DEPTH)
    except Unfit:  # the name in an end tag is not looked at, and a grammar cannot remember one
        name, tags = lark.terminal(ANY_NAME), Tags(TAG, ">", f"{TAG}/", MARK)
        any_text = string([ANY_TEXT], tags, lark, alone=True)
        return f'({lark.text(TAG)} {name} ">" {any_text} {name} ">")*'


def _members(schema: Mapping[str, Any], root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not schema.keys() <= OBJECT_KEYS | NOTES or not {*required} <= properties.keys():
        raise Unfit
    members = []
    for key, each in properties.items():
        if not NAME.fullmatch(key) or key == ITEM or key.startswith("/"):
            raise Unfit
        rule = lark.rule(_element(key, each, root, lark, depth))
        members.append(rule if key in required else f"{rule}?")
    return " ".join(members)


def _element(key: str, schema: Any, root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    """A value in tags of this name."""
    if depth == 0:
        raise Unfit
    opening, closing = f"{TAG}{key}>", f"{MARK}</{key}>"
    tags = Tags(TAG, ">", closing, MARK)
    if (text := held_text(schema, tags, lark)) is not None:
        return f"{lark.text(opening)} {text}"
    try:
        strings, others = split(schema, root)
    except Unfit:
        strings, others = [ANY_TEXT], []
    ways = []
    if strings:
        ways.append(f"{lark.text(opening)} {string(strings, tags, lark, alone=not others)}")
    for other in others:
        for kind in sorted(types_of(other, root)):
            value = _value({**other, "type": kind}, kind, root, lark, depth)
            ways.append(f"{lark.text(opening)} {value} {lark.text(closing)}")
    return " | ".join(ways)


def _value(schema: Mapping[str, Any], kind: str, root: Mapping[str, Any], lark: Lark, depth: int) -> str:
    """A value of this type that is no string."""
    if kind == "object":
        return f"({_members(schema, root, lark, depth - 1)})"
    if kind != "array":
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        return lark.json({**schema, **definitions})
    if not schema.keys() <= ARRAY_KEYS | NOTES:
        raise Unfit
    item = lark.rule(_element(ITEM, schema.get("items", {}), root, lark, depth - 1))
    return f"{item}{{{schema.get('minItems', 0)},{schema.get('maxItems', '')}}}"
