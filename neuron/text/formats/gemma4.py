"""Tool calls as Gemma 4 writes them: `<|tool_call>call:name{key:<|"|>text<|"|>,more:[1]}<tool_call|>`."""

from __future__ import annotations

import re

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.gemma4_grammar import QUOTE, members
from neuron.text.formats.lark import Lark
from neuron.text.formats.literals import LiteralParser
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<|tool_call>", "<tool_call|>"
MAX_KEY = 256  # characters
_NO_KEY = (*"{}[],", QUOTE)


class Gemma4Parser(LiteralParser):
    """Reads calls whose arguments are an object with bare keys, and strings between quotes of their own."""

    openings = (CALL,)
    quotes = (QUOTE,)
    escapes = False
    name_pattern = re.compile(r"[\w.:/\-]+")

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        yield from self.expect("call:")
        yield from self.name("{")
        self.open()
        yield from self.members()
        self.close()
        yield from self.space()
        yield from self.accept(END_CALL)

    def key(self) -> Steps[str]:
        if (yield from self.accept(QUOTE)):
            key, _ = yield from self.until(QUOTE, limit=MAX_KEY)
            yield from self.space()
            yield from self.expect(":")
            return key
        key, mark = yield from self.until(":", *_NO_KEY, limit=MAX_KEY)
        if mark != ":" or not key.strip():
            raise NoCall
        return key.strip()


class Gemma4(ToolFormat):
    """What Gemma 4 writes."""

    name = "gemma4"
    parser = Gemma4Parser
    markers = (CALL, END_CALL, QUOTE)
    between = ""

    def is_of(self, template: str) -> bool:
        return CALL in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        return f"{lark.text(f'{CALL}call:{name}')} {members(schema, lark)} {lark.text(END_CALL)}"


GEMMA4 = Gemma4()
