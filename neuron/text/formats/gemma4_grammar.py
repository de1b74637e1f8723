"""Grammars for values as Gemma 4 writes them: keys are bare, and strings stand between quotes of their own.

Keys come in the order of the schema's properties, and no others come than these. What cannot be told of a
value is left to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from neuron.text.formats.lark import Lark
from neuron.text.formats.members import NOTES, Unfit, named, several
from neuron.text.formats.members import members as in_order
from neuron.text.formats.parameter_grammar import ANY_TEXT, Tags, held_text, split, string
from neuron.text.formats.schema_types import ANY, referred, types_of

QUOTE = '<|"|>'
MAX_DEPTH = 6  # of values within values; what is deeper is any
_KEY = re.compile(r"[^\s:{}\[\],<>|\"](?:[^:{}\[\],<>|\"\n]*[^\s:{}\[\],<>|\"])?")
_ANY_KEY = r"/[A-Za-z_][A-Za-z0-9_.\-]{0,62}/"
_STRING = Tags("", "", QUOTE, QUOTE)
_ANY, _ANY_KINDS = "any_value", "any_scalar | any_list | any_object"
_SCALARS = {"number", "integer", "boolean", "null"}
_ARRAY_KEYS = {"type", "items", "minItems", "maxItems", "prefixItems"}


def members(schema: Mapping[str, Any], lark: Lark) -> str:
    """The arguments of a call in their braces, valid against `schema` as far as that can be told."""
    values = _Values(schema, lark)
    try:
        return values.object(schema, MAX_DEPTH)
    except Unfit:
        return values.any_object()


class _Values:
    """Writes values.

    Args:
        root: the schema that references refer to.
    """

    def __init__(self, root: Mapping[str, Any], lark: Lark) -> None:
        self._root, self._lark = root, lark

    def object(self, schema: Mapping[str, Any], depth: int) -> str:
        """An object with the properties of `schema`.

        Raises:
            Unfit: it needs one that cannot be written.
        """
        more = schema.get("additionalProperties", True)
        if not schema.get("properties") and more is not False:
            count = schema.get("minProperties", 0), schema.get("maxProperties")
            return self._object_of(self.value(more, depth - 1), *count)
        if not named(schema) or any(QUOTE in key for key in schema.get("properties") or {}):
            raise Unfit

        def written(key: str, each: Any) -> str:
            spelled = key if _KEY.fullmatch(key) else QUOTE + key + QUOTE
            return f"{self._lark.text(spelled + ':')} {self.value(each, depth - 1)}"

        return f'"{{" {in_order(schema, written, self._lark, between=",")} "}}"'

    def any_object(self) -> str:
        """Any object."""
        self.any()
        return "any_object"

    def _object_of(self, value: str, least: int = 0, most: int | None = None) -> str:
        member = f'{self._lark.terminal(_ANY_KEY)} ":" {value}'
        return f'"{{" {several(member, least, most, self._lark, ",")} "}}"'

    def any(self) -> str:
        """Any value."""
        if f"{_ANY}: {_ANY_KINDS}" not in self._lark.rules:
            self._lark.rules.append(f"{_ANY}: {_ANY_KINDS}")
            scalar = self._lark.json({"type": sorted(_SCALARS)})
            self._lark.rules.append(f"any_scalar: {scalar} | {self._string([ANY_TEXT])}")
            self._lark.rules.append(f'any_list: "[" ({_ANY} ("," {_ANY})*)? "]"')
            self._lark.rules.append(f"any_object: {self._object_of(_ANY)}")
        return _ANY

    def value(self, schema: Any, depth: int) -> str:
        """A value that is valid against `schema`, as far as that can be told."""
        if (text := held_text(schema, _STRING, self._lark)) is not None:
            return f"{self._lark.text(QUOTE)} {text}"
        if schema is True or (isinstance(schema, Mapping) and not schema.keys() - NOTES):
            return self.any()
        try:
            if depth <= 0:
                raise Unfit
            strings, others = split(schema, self._root)
            ways = [self._string(strings)] if strings else []
            ways += [self._other(each, depth) for each in others]
        except Unfit:
            return self._of_types(types_of(schema, self._root))
        return f"({' | '.join(ways)})"

    def _of_types(self, types: frozenset[str]) -> str:
        """Any value of these types."""
        if types == ANY:
            return self.any()
        self.any()
        ways = {"string": self._string([ANY_TEXT]), "array": "any_list", "object": "any_object"}
        scalars = [self._lark.json({"type": sorted(types & _SCALARS)})] if types & _SCALARS else []
        return f"({' | '.join([*scalars, *(ways[each] for each in sorted(types - _SCALARS))])})"

    def _string(self, contents: list[str]) -> str:
        return f"{self._lark.text(QUOTE)} {string(contents, _STRING, self._lark, alone=True)}"

    def _other(self, schema: Any, depth: int) -> str:
        """A value that is no string."""
        if not isinstance(schema, Mapping):
            raise Unfit
        types = types_of(schema, self._root)
        keys = schema.keys() - NOTES
        if keys == {"$ref"}:
            return self.value(referred(schema["$ref"], self._root), depth - 1)
        if types <= _SCALARS:
            definitions = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
            return self._lark.json({**schema, **definitions})
        if "enum" in keys or "const" in keys:
            allowed = schema["enum"] if "enum" in keys else [schema["const"]]
            return " | ".join(self._lark.text(written(each)) for each in allowed)
        for key in ("anyOf", "oneOf", "allOf"):
            if keys - {"type"} == {key} and (key != "allOf" or len(schema[key]) == 1):
                return " | ".join(self.value(each, depth - 1) for each in schema[key])
        if len(types) > 1 and keys == {"type"}:
            return " | ".join(self._other({"type": each}, depth) for each in sorted(types))
        if types == {"array"} and keys <= _ARRAY_KEYS:
            return self._array(schema, depth)
        if types == {"object"}:
            return self.object(schema, depth)
        raise Unfit

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        first, others = schema.get("prefixItems") or [], schema.get("items", True)
        if most is not None:
            first = first[:most]
        if others is False and least > len(first):
            raise Unfit
        rest = ""
        if others is not False and (most is None or most > len(first)):
            item = self.value(others, depth - 1)
            if not first:
                return f'"[" {several(item, least, most, self._lark, ",")} "]"'
            bound = None if most is None else most - len(first)
            rest = several(f'"," {item}', max(least - len(first), 0), bound, self._lark)
        for place in reversed(range(len(first))):
            comma = '","' if place else ""
            rest = f"({comma} {self.value(first[place], depth - 1)} {rest}){'' if place < least else '?'}"
        return f'"[" {rest} "]"'


def written(value: Any) -> str:
    """A value as Gemma 4 writes it."""
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)
