"""Tool calls as MiniMax M1 writes them, one JSON object a line in a section.

<tool_calls>
{"name": "name", "arguments": {...}}
</tool_calls>
"""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.hermes import HermesParser
from neuron.text.formats.json_list import JsonListFormat

SECTION, END_SECTION = "<tool_calls>", "</tool_calls>"


class MiniMaxM1Parser(HermesParser):
    """Reads sections of JSON objects."""

    openings = (SECTION,)

    def call(self, opening: str) -> Steps[None]:
        yield from self.space()
        yield from self.expect("{")
        while True:
            yield from self.members(END_SECTION)
            self.end()
            yield from self.space()
            if not (yield from self.accept("{")):
                break
        yield from self.accept(END_SECTION)


class MiniMaxM1(JsonListFormat):
    """What MiniMax M1 writes."""

    name = "minimax_m1"
    parser = MiniMaxM1Parser
    markers = (SECTION, END_SECTION)
    before, between, after = f"{SECTION}\n", "\n", f"\n{END_SECTION}"

    def is_of(self, template: str) -> bool:
        return SECTION in template


MINIMAX_M1 = MiniMaxM1()
