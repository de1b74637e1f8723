"""Grammars of the members of an object: in the order of their schema, and no others than these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from neuron.text.formats.lark import TEXT_GRAMMAR, Lark

NOTES = {
    *("$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated"),
    *("description", "examples", "id", "readOnly", "title", "writeOnly", "nullable", TEXT_GRAMMAR),
}
_KEYS = {"type", "properties", "required", "additionalProperties", "minProperties", "maxProperties"}


class Unfit(Exception):
    """No grammar can be made of a schema in this way."""


def named(schema: Mapping[str, Any]) -> bool:
    """Whether what is asked of an object can be told of the properties that its schema names, one by one."""
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    return (
        schema.keys() <= _KEYS | NOTES
        and {*required} <= properties.keys()
        and schema.get("minProperties", 0) <= len(properties)
        and schema.get("maxProperties", len(properties)) >= len({*required})
    )


def fitting(schema: Mapping[str, Any], fits: Callable[[str], Any]) -> Mapping[str, Any]:
    """The same without the properties whose names cannot be written; where one has to be there, the schema is
    not `named`."""
    properties = schema.get("properties") or {}
    return {**schema, "properties": {key: each for key, each in properties.items() if fits(key)}}


def members(
    schema: Mapping[str, Any], written: Callable[[str, Any], str], lark: Lark, between: str = ""
) -> str:
    """The members of an object that is `named`.

    Args:
        written: a member, from its key and the schema of its value.
        between: stands between two of them.
    """
    properties, required = schema.get("properties") or {}, {*(schema.get("required") or [])}
    parts = [(lark.rule(written(key, each)), key in required) for key, each in properties.items()]
    least, most = schema.get("minProperties", 0), schema.get("maxProperties", len(parts))
    if not between and least <= len(required) and most >= len(parts):
        return " ".join(part if needed else f"{part}?" for part, needed in parts)
    return _Counted(parts, least, most, between, lark).rest(0, 0) or ""


def several(item: str, least: int, most: int | None, lark: Lark, between: str = "") -> str:
    """The same expression so many times.

    Args:
        most: None: as often as one likes.
        between: stands between two of them.
    """
    if most == 0:
        return ""
    item = lark.rule(item)
    if not between:
        return f"{item}{{{least},{'' if most is None else most}}}"
    most = None if most is None else most - 1
    more = several(f"{lark.text(between)} {item}", max(least - 1, 0), most, lark)
    return f"({item} {more}){'' if least else '?'}"


class _Counted:
    """Some of several members, as many as there may be."""

    def __init__(
        self, parts: list[tuple[str, bool]], least: int, most: int, between: str, lark: Lark
    ) -> None:
        self._parts, self._least, self._most = parts, least, most
        self._between, self._lark = between, lark
        # What was written already matters no more than this.
        self._enough = max(least, 1) if most >= len(parts) else most
        self._known: dict[tuple[int, int], str | None] = {}

    def rest(self, place: int, count: int) -> str | None:
        """What may follow `count` members where that at `place` is next; None where nothing can be right."""
        count = min(count, self._enough)
        if place == len(self._parts):
            return "" if count >= self._least else None
        if (place, count) not in self._known:
            self._known[place, count] = self._rest(place, count)
        return self._known[place, count]

    def _rest(self, place: int, count: int) -> str | None:
        part, needed = self._parts[place]
        ways = []
        may_come = count < self._most or self._most >= len(self._parts)
        if may_come and (more := self.rest(place + 1, count + 1)) is not None:
            before = self._lark.text(self._between) if count and self._between else ""
            ways.append(f"{before} {part} {more}".strip())
        if not needed and (more := self.rest(place + 1, count)) is not None:
            ways.append(more or '""')
        return self._lark.rule(" | ".join(ways)) if ways else None
