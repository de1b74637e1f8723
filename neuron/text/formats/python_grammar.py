"""Grammars for arguments that are written as those of a Python function: `a=1, b="x"`.

They come in the order of the schema's properties, and no others come than these. Where one by one they cannot
be told to fit, all of them are one object: `**{"a": 1}`. A value is JSON, which is Python but for its words;
where the schema says that a word may stand there, it is Python's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from neuron.text.formats.lark import Lark
from neuron.text.formats.members import NOTES, members, named
from neuron.text.formats.schema_types import type_of

_KEY = re.compile(r"[A-Za-z_][\w.\-]*", re.ASCII)
_WORDS = {True: "True", False: "False", None: "None"}
_TYPES = {"boolean": (True, False), "null": (None,)}


def keywords(schema: Mapping[str, Any], lark: Lark) -> str:
    """The arguments of a call, valid against `schema`."""
    if not fits(schema):
        return f'"**" {lark.json(schema)}'
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return members(
        schema,
        lambda key, each: f"{lark.text(key + '=')} {literal(each, definitions, lark)}",
        lark,
        between=", ",
    )


def fits(schema: Mapping[str, Any]) -> bool:
    """Whether arguments that fit one by one fit `schema`."""
    properties = schema.get("properties") or {}
    return (bool(properties) or schema.get("additionalProperties", True) is False) and (
        named(schema) and all(_KEY.fullmatch(key) and _is_apart(each) for key, each in properties.items())
    )


def _is_apart(schema: Any) -> bool:
    """Whether a schema means something by itself: it refers to nothing but definitions."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref", "#/$defs/")
        known = isinstance(reference, str) and reference.startswith(("#/$defs/", "#/definitions/"))
        return known and all(map(_is_apart, schema.values()))
    return all(map(_is_apart, schema)) if isinstance(schema, list) else schema is not False


def literal(schema: Any, definitions: Mapping[str, Any], lark: Lark) -> str:
    """A value that is valid against `schema`."""
    schema = schema if isinstance(schema, Mapping) else {}
    keys = schema.keys() - NOTES
    if keys == {"anyOf"}:
        return _any_of([literal(each, definitions, lark) for each in schema["anyOf"]])
    if "enum" in keys and keys <= {"type", "enum"} and all(_is_word(each, schema) for each in schema["enum"]):
        return _any_of([lark.text(_word(each)) for each in schema["enum"]])
    types = schema.get("type")
    if isinstance(types, list) and "enum" not in schema and "const" not in schema and types:
        return _any_of([literal({**schema, "type": each}, definitions, lark) for each in types])
    if keys == {"type"} and types in _TYPES:
        return _any_of([lark.text(_WORDS[each]) for each in _TYPES[types]])
    return lark.json({**schema, **definitions})


def _word(value: Any) -> str:
    return (
        _WORDS[value]
        if value is None or value is True or value is False
        else json.dumps(value, ensure_ascii=False)
    )


def _is_word(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value that `schema` names is no bracket, and of its type."""
    types = schema.get("type", type_of(value))
    return not isinstance(value, list | dict) and type_of(value) in (
        [types] if isinstance(types, str) else types
    )


def _any_of(ways: Sequence[str]) -> str:
    return f"({' | '.join(dict.fromkeys(ways))})"
