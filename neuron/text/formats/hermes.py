"""Tool calls in the Hermes format: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the text."""

from __future__ import annotations

import json
from typing import ClassVar

from neuron.text.formats.call_parser import CallParser, NoCall, Steps
from neuron.text.formats.json_scan import object_in
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<tool_call>", "</tool_call>"
ARGUMENTS = ("arguments", "parameters", "args", "input")  # what models call them
BESIDE = ("id", "tool_call_id", "type")  # what else may stand in a call, and says nothing


class HermesParser(CallParser):
    """Reads calls that are JSON objects between two tags.

    Attributes:
        names: what the name of a call is called in the object.
        needs_arguments: an object without any is no call.
    """

    openings = (CALL,)
    names: ClassVar[tuple[str, ...]] = ("name",)
    needs_arguments = False

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        yield from self.expect("{")
        yield from self.members(END_CALL, CALL)
        yield from self.space()
        while (yield from self.accept("}")):  # one too many
            yield from self.space()
        yield from self.accept(END_CALL)
        self.end()

    def members(self, *ends: str) -> Steps[None]:
        """Read a call that is a JSON object, of which the brace was read, and begin it.

        Args:
            ends: marks at which it is over, complete or not.

        Raises:
            NoCall: it has no name, arguments that are no object, or something that no call has.
        """
        arguments: str | None = None
        while True:
            yield from self.space()
            if (yield from self.accept("}")):
                break
            key = yield from self.string()
            yield from self.space()
            yield from self.expect(":")
            yield from self.space()
            if key in self.names and not self.is_named:
                yield from self.name_string()
            elif key in ARGUMENTS and arguments is None:
                if self.is_named and (yield from self.peek()) == "{":
                    self.begin()
                    yield from self.object(*ends)
                    yield from self.value(opened="{")  # what else stands in the call says nothing
                    return
                arguments = object_in((yield from self.value()))
                if arguments is None:
                    raise NoCall
            elif key in BESIDE:
                yield from self.value()
            else:
                raise NoCall
            yield from self.space()
            if (yield from self.expect(",", "}")) == "}":
                break
        if not self.is_named or (arguments is None and self.needs_arguments):
            raise NoCall
        self.begin(arguments or "{}")


class Hermes(ToolFormat):
    """What Qwen, Hermes and many others write."""

    name = "hermes"
    parser = HermesParser
    markers = (CALL, END_CALL)

    def is_of(self, template: str) -> bool:
        return CALL in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head = json.dumps({"name": name})[:-1] + ', "arguments": '
        return f"{lark.text(CALL + chr(10) + head)} {lark.json(schema)} {lark.text('}' + chr(10) + END_CALL)}"


HERMES = Hermes()
