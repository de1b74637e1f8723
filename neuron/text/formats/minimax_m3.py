"""Tool calls as MiniMax M3 writes them: every object in the arguments as tags, each behind the same token.

]<]minimax[>[<tool_call>
]<]minimax[>[<invoke name="name">]<]minimax[>[<key>value]<]minimax[>[</key>]<]minimax[>[</invoke>
]<]minimax[>[</tool_call>

A list has its elements in tags named `item`. An argument that is null is left out, and an empty text, list or
object is told apart by the schema alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from neuron.text.formats.call_parser import NoCall, Steps, Unfinished
from neuron.text.formats.lark import Lark
from neuron.text.formats.minimax_m3_grammar import END_CALL, INVOKE, ITEM, MARK, TAG, arguments
from neuron.text.formats.parameters import ParametersParser
from neuron.text.formats.schema_types import STRING, referred, typed, types_of
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL = f"{MARK}<tool_call>"
MAX_DEPTH = 64  # of values in each other


class MiniMaxM3Parser(ParametersParser):
    """Reads values in tags, of types that the schema tells."""

    openings = (CALL,)

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        yield from self.expect(INVOKE)
        while True:
            yield from self.name('">')
            key = yield from self._tag()
            if key is None:
                raise NoCall if (yield from self.peek()) else Unfinished
            self.begin()
            yield from self._arguments(key)
            self.end()
            yield from self.space()
            if not (yield from self.accept(INVOKE)):
                break
        yield from self.accept(END_CALL)

    def _arguments(self, key: str | None) -> Steps[None]:
        """Hand out all arguments, of which the first tag was read."""
        while key is not None and not key.startswith("/"):
            self.argument(key, "")
            yield from self._value(_property(self._schema, key, self._schema), MAX_DEPTH)
            key = yield from self._tag()
        if key is None and (yield from self.peek()):
            raise NoCall
        yield from self.end_arguments()

    def _tag(self) -> Steps[str | None]:
        """What stands in the tag that follows, if one does."""
        yield from self.space()
        if not (yield from self.accept(TAG)):
            if self.cut and not (yield from self.peek()):
                raise Unfinished
            return None
        return (yield from self.until(">"))[0]

    def _value(self, schema: Any, depth: int) -> Steps[None]:
        """Hand out a value up to its end tag, which is taken."""
        types = types_of(schema, self._schema)
        if types == STRING:
            self.add('"')
            yield from self.text_until(((TAG + "/", ()),), self.add_string)
            self.add('"')
            yield from self.until(">")
            return
        said, _ = yield from self.until(TAG)
        tag, _ = yield from self.until(">")
        if tag.startswith("/"):
            self.add(_bare(said, types))
            return
        if depth == 0:
            raise NoCall
        is_list = tag == ITEM and "array" in types
        self.add("[" if is_list else "{")
        between = ""
        while tag is not None and not tag.startswith("/"):
            self.add(between if is_list else f"{between}{msgspec.json.encode(tag).decode()}: ")
            inner = _item(schema, self._schema) if is_list else _property(schema, tag, self._schema)
            yield from self._value(inner, depth - 1)
            between = ", "
            tag = yield from self._tag()
        self.add("]" if is_list else "}")


class MiniMaxM3(ToolFormat):
    """What MiniMax M3 writes."""

    name = "minimax_m3"
    parser = MiniMaxM3Parser
    markers = (MARK,)
    before, after = f"{CALL}\n", f"\n{END_CALL}"

    def is_of(self, template: str) -> bool:
        return MARK in template and '<invoke name="' in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head, end = lark.text(f'{INVOKE}{name}">'), lark.text(f"{MARK}</invoke>")
        return f"{head} {arguments(schema, lark)} {end}"


MINIMAX_M3 = MiniMaxM3()


def _bare(text: str, types: frozenset[str]) -> str:
    """The JSON of a value without tags in it."""
    if not text and "string" not in types:
        for kind, empty in (("null", "null"), ("array", "[]"), ("object", "{}")):
            if kind in types:
                return empty
    return typed(text, types)


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(8):
        if not (isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str)):
            break
        schema = referred(schema["$ref"], root)
    return schema if isinstance(schema, Mapping) else {}


def _property(schema: Any, key: str, root: Mapping[str, Any]) -> Any:
    """The schema of a member of an object."""
    found = _resolved(schema, root)
    properties = found.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    return found.get("additionalProperties")


def _item(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema of the elements of a list."""
    return _resolved(schema, root).get("items")
