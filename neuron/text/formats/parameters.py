"""What formats have in common that write each argument of a call by itself, as bare text between tags.

A string stands there as it is, to the byte, and anything else as JSON. Which of them a text is, the schema
of the tool says; where it allows both, or nothing is known, a text that can be read as something else than a
string is that. So such a format cannot carry everything: a string that looks like a number where both are
allowed, or a string with the whole sequence of tags in it that ends a value. A tag alone is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from neuron.text.formats.call_parser import CallParser, NoCall, Steps, Unfinished
from neuron.text.formats.schema_types import STRING, typed, types_of

# Marks that end a value, each with the marks that come behind it where it does: see `CallParser.ahead`.
Ends = tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


class ParametersParser(CallParser):
    """Adds to the steps of a `CallParser` those for arguments that come one by one."""

    _schema: Mapping[str, Any]  # of the arguments of the call
    _count: int  # of those that came

    def begin(self, arguments: str = "") -> None:
        tool = self.tools.get(self._name or "")
        self._schema, self._count = tool.parameters if tool is not None else {}, 0
        super().begin(arguments)

    def parameter(self, key: str, ends: Ends, types: frozenset[str] | None = None) -> Steps[str]:
        """Take the value of the argument `key`, a text up to one of `ends`, which is returned.

        Args:
            types: that it may have, where the format says so.
        """
        types = types or self.types(key)
        if types == STRING:
            return (yield from self.string_parameter(key, ends))
        said: list[str] = []
        end = yield from self.text_until(ends, said.append)
        value = typed("".join(said), types)
        if not end and value[0] == '"':  # half of something else than a string: nobody knows of what
            self.argument(key, "")
            raise Unfinished
        self.argument(key, value)
        return end

    def string_parameter(self, key: str, ends: Ends) -> Steps[str]:
        """The same, of a string: it is handed out as it comes."""
        self.argument(key, '"')
        end = yield from self.text_until(ends, self.add_string)
        self.add('"')
        return end

    def behind(self, *marks: str) -> Steps[str]:
        """Take the one of `marks` that comes behind an argument; nothing where the text is over.

        Raises:
            NoCall: something else comes. The call stays incomplete.
        """
        mark = yield from self.accept(*marks)
        if mark is None and (yield from self.peek()):
            raise NoCall
        return mark or ""

    def types(self, key: str) -> frozenset[str]:
        """The types that the argument `key` may have."""
        properties = self._schema.get("properties")
        known = properties.get(key) if isinstance(properties, Mapping) else None
        return types_of(self._schema.get("additionalProperties") if known is None else known, self._schema)

    def argument(self, key: str, value: str) -> None:
        """Hand out an argument, or the beginning of one."""
        self.add(f"{', ' if self._count else '{'}{msgspec.json.encode(key).decode()}: {value}")
        self._count += 1

    def add_string(self, text: str) -> None:
        """Hand out more of a string."""
        self.add(msgspec.json.encode(text)[1:-1].decode())

    def end_arguments(self) -> Steps[None]:
        """There are no more of them.

        Raises:
            Unfinished: nobody knows, as the answer was cut.
        """
        if self.cut and not (yield from self.peek()):
            raise Unfinished
        self.add("}" if self._count else "{}")
