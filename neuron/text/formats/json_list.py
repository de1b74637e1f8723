"""What formats have in common that write calls as JSON objects behind a tag: in a list, or one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from neuron.text.formats.call_parser import CallParser, NoCall, Steps
from neuron.text.formats.json_scan import object_in
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Call, Schema, ToolFormat

ARGUMENTS = ("arguments", "parameters", "args", "input")  # what models call them
BESIDE = ("id", "tool_call_id", "type")  # what else may stand in a call, and says nothing
WITHIN = "function"  # where a call is written as APIs write it, this is what has the name and the arguments


class JsonListParser(CallParser):
    """Reads calls in a list, or one that stands alone.

    Attributes:
        ends: tags behind them, of which one is taken where it comes.
        is_closed: a call that stands alone is whole with that tag.
        names: what the name of a call is called in its object.
        needs_arguments: an object without any is no call.
    """

    ends: ClassVar[tuple[str, ...]] = ()
    is_closed = False
    names: ClassVar[tuple[str, ...]] = ("name",)
    needs_arguments = False

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.expect("[", "{")) == "[":
            yield from self.rest_of_list()
        else:
            yield from self.members(*self.ends, *self.openings)
            if not self.is_closed:
                self.end()
        yield from self.space()
        while (yield from self.accept("}")):  # one too many
            yield from self.space()
        if (yield from self.accept(*self.ends)):
            self.forget()  # an empty list is a frame without calls

    def rest_of_list(self) -> Steps[None]:
        """Read calls in a list, of which the bracket was read.

        Raises:
            NoCall: something in it is none.
        """
        yield from self.space()
        while (yield from self.accept("{")):
            yield from self.member()
            yield from self.space()
            yield from self.accept(",")
            yield from self.space()
        if not (yield from self.accept("]")) and not (yield from self._is_over()):
            raise NoCall

    def member(self) -> Steps[None]:
        """Read a call, of which the brace was read."""
        yield from self.members(*self.ends, *self.openings)
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
            elif key == WITHIN and not self.is_named:
                yield from self.expect("{")
                yield from self.members(*ends)
                yield from self.value(opened="{")
                return
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

    def _is_over(self) -> Steps[bool]:
        """Whether what stands where the list should end is a tag, or the end of the answer."""
        if not (yield from self.peek()):
            return True
        return (yield from self._goes_on(self.ends)) is not None


class JsonListFormat(ToolFormat):
    """A format whose calls are JSON objects. What is around and between them is up to each."""

    between = ", "
    keys: ClassVar[tuple[str, str]] = ("name", "arguments")

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        called, arguments = self.keys
        head = json.dumps({called: name}, ensure_ascii=False)[:-1] + f', "{arguments}": '
        return f"{lark.text(head)} {lark.json(schema)} {lark.text('}')}"

    def as_text(self, calls: Sequence[Call]) -> str:
        written = (json.dumps(dict(zip(self.keys, call, strict=True)), ensure_ascii=False) for call in calls)
        return self.before + self.between.join(written) + self.after
