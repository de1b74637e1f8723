"""Tool calls as Phi-4-mini writes them: `<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>`."""

from __future__ import annotations

from neuron.text.formats.json_list import JsonListFormat, JsonListParser

CALLS, END_CALLS = "<|tool_call|>", "<|/tool_call|>"
TOOLS = "<|/tool|>"  # the end of the list of tools: its templates speak of no more


class Phi4Parser(JsonListParser):
    """Reads a JSON list between two tags, or behind `functools`, which it writes as often."""

    openings = (CALLS, "functools")
    ends = (END_CALLS,)


class Phi4(JsonListFormat):
    """What Phi-4-mini writes."""

    name = "phi4"
    parser = Phi4Parser
    markers = (CALLS, END_CALLS)
    before = CALLS + "["
    after = "]" + END_CALLS

    def is_of(self, template: str) -> bool:
        return TOOLS in template or END_CALLS in template


PHI4 = Phi4()
