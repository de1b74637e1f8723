"""Tool calls as Apriel writes them: `<tool_calls>[{"name": ..., "arguments": {...}}]</tool_calls>`."""

from __future__ import annotations

from neuron.text.formats.json_list import JsonListFormat, JsonListParser

CALLS, END_CALLS = "<tool_calls>", "</tool_calls>"


class AprielParser(JsonListParser):
    """Reads a JSON list between two tags."""

    openings = (CALLS,)
    ends = (END_CALLS,)


class Apriel(JsonListFormat):
    """What Apriel writes."""

    name = "apriel"
    parser = AprielParser
    markers = (CALLS, END_CALLS)
    before = CALLS + "["
    after = "]" + END_CALLS

    def is_of(self, template: str) -> bool:
        return CALLS + "[" in template


APRIEL = Apriel()
