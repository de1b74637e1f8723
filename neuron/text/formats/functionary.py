"""Tool calls as Functionary v3.2 writes them: the name of who is spoken to, a line break, and what is said.

    >>>all
    Let me see.>>>name
    {"a": 1}

The prompt ends with the first `>>>`.
"""

from __future__ import annotations

from typing import Any

from neuron.text.formats.call_parser import CallParser, NoCall, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

TO = ">>>"
ALL = "all"  # the user


class FunctionaryParser(CallParser):
    """Reads calls of known tools; who is spoken to otherwise is no text where it is the user."""

    openings = (TO,)
    starts = (ALL + "\n",)

    def __init__(self, *args: Any, **limits: Any) -> None:
        super().__init__(*args, **limits)
        self.starts = (*self.starts, *(f"{name}\n" for name in self.tools))

    def call(self, opening: str) -> Steps[None]:
        if opening == TO:
            yield from self.name("\n")
        else:
            self.named(opening[:-1])
        if self.named_so_far == ALL:
            self.forget()
            return
        if not self.is_known:
            raise NoCall
        yield from self.space()
        if (yield from self.peek()) not in ("{", ""):
            raise NoCall
        self.begin()
        yield from self.object(TO)
        self.end()


class Functionary(ToolFormat):
    """What Functionary v3.2 writes."""

    name = "functionary"
    parser = FunctionaryParser
    between = TO
    frames_text = True

    def is_of(self, template: str) -> bool:
        return TO + "${recipient}" in template or TO + ALL in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        return f"{lark.text(name + chr(10))} {lark.json(schema)}"


FUNCTIONARY = Functionary()
