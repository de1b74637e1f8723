"""What formats have in common that write all calls of an answer as one JSON list behind a tag."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.hermes import HermesParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Call, Schema, ToolFormat


class JsonListParser(HermesParser):
    """Reads calls in a list, or one that stands alone.

    Attributes:
        ends: tags behind the list, of which one is taken where it comes.
    """

    ends: ClassVar[tuple[str, ...]] = ()

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.expect("[", "{")) == "[":
            yield from self.rest_of_list()
        else:
            yield from self.member()
        yield from self.space()
        yield from self.accept(*self.ends)

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
