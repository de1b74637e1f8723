"""Tool calls as MiniMax M1 writes them, one JSON object a line in a section.

<tool_calls>
{"name": "name", "arguments": {...}}
</tool_calls>

Templates of others speak of the same section and mean a list of such objects in it, as Hunyuan's.
"""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.json_list import JsonListFormat, JsonListParser

SECTION, END_SECTION = "<tool_calls>", "</tool_calls>"


class MiniMaxM1Parser(JsonListParser):
    """Reads sections of JSON objects, in a list or without."""

    openings = (SECTION,)
    ends = (END_SECTION,)

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.expect("[", "{")) == "[":
            yield from self.rest_of_list()
            yield from self.space()
        else:
            yield from self.member()
            yield from self.space()
            while (yield from self.accept("{")):
                yield from self.member()
                yield from self.space()
        yield from self.accept(*self.ends)


class MiniMaxM1(JsonListFormat):
    """What MiniMax M1 writes."""

    name = "minimax_m1"
    parser = MiniMaxM1Parser
    markers = (SECTION, END_SECTION)
    before, between, after = f"{SECTION}\n", "\n", f"\n{END_SECTION}"

    def is_of(self, template: str) -> bool:
        return SECTION in template


MINIMAX_M1 = MiniMaxM1()
