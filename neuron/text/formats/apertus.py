"""Tool calls as Apertus writes them: `<|tools_prefix|>[{"name": {...}}]<|tools_suffix|>`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.json_list import JsonListFormat, JsonListParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Call, Schema

CALLS, END_CALLS = "<|tools_prefix|>", "<|tools_suffix|>"


class ApertusParser(JsonListParser):
    """Reads a JSON list between two tags, whose objects have one key: the name."""

    openings = (CALLS,)
    ends = (END_CALLS,)

    def members(self, *ends: str) -> Steps[None]:
        yield from self.space()
        yield from self.name_string()
        yield from self.space()
        yield from self.expect(":")
        yield from self.space()
        if (yield from self.peek()) != "{":
            raise NoCall
        self.begin()
        yield from self.object(*ends)
        yield from self.value(opened="{")  # what else stands in the call says nothing


class Apertus(JsonListFormat):
    """What Apertus writes."""

    name = "apertus"
    parser = ApertusParser
    markers = (CALLS, END_CALLS)
    before, after = CALLS + "[", "]" + END_CALLS

    def is_of(self, template: str) -> bool:
        return CALLS in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head = f"{{{json.dumps(name, ensure_ascii=False)}: "
        return f"{lark.text(head)} {lark.json(schema)} {lark.text('}')}"

    def as_text(self, calls: Sequence[Call]) -> str:
        written = (json.dumps({name: given}, ensure_ascii=False) for name, given in calls)
        return self.before + self.between.join(written) + self.after


APERTUS = Apertus()
