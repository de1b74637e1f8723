"""Tool calls as Kimi K2 writes them, in a section whose tags are tokens: the id of a call holds its name.

<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
"""

from __future__ import annotations

import re
from typing import Any

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.section import SectionParser
from neuron.text.formats.tool_format import Schema, ToolFormat

SECTION, END_SECTION = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, END_CALL = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

_NUMBERED = re.compile(r"(?P<name>.+?)(?::(?P<number>\d{1,9}))?", re.DOTALL)


class KimiParser(SectionParser):
    """Reads calls and keeps their ids, as some templates write nothing else of a call's name."""

    openings = (SECTION, CALL)
    end_section = END_SECTION

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._id = ""  # of the call that begins
        self._ids: set[str] = set()

    def one_call(self) -> Steps[None]:
        yield from self.space()
        yield from self.accept("functions.")
        yield from self.name(ARGUMENTS)
        self.begin()
        yield from self.object(END_CALL, ARGUMENTS)
        yield from self.space()
        yield from self.accept(END_CALL)
        self.end()

    def named(self, name: str) -> None:
        found = _NUMBERED.fullmatch(name)
        if found is None:
            raise NoCall
        super().named(found["name"])
        self._id = f"functions.{found['name']}:{found['number']}" if found["number"] else ""

    def new_id(self) -> str:
        if not self._id or self._id in self._ids:
            return super().new_id()
        self._ids.add(self._id)
        return self._id


class Kimi(ToolFormat):
    """What Kimi K2 writes."""

    name = "kimi"
    parser = KimiParser
    markers = (SECTION, END_SECTION, CALL, ARGUMENTS, END_CALL)
    before, between, after = SECTION, "", END_SECTION

    def is_of(self, template: str) -> bool:
        return CALL in template and ARGUMENTS in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head, number = lark.text(f"{CALL}functions.{name}:"), lark.terminal("/[0-9]{1,4}/")
        return f"{head} {number} {lark.text(ARGUMENTS)} {lark.json(schema)} {lark.text(END_CALL)}"


KIMI = Kimi()
