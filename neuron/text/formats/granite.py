"""Tool calls as Granite 3 writes them: `<|tool_call|>[{"name": ..., "arguments": {...}}]`."""

from __future__ import annotations

from neuron.text.formats.json_list import JsonListFormat, JsonListParser

CALL = "<|tool_call|>"


class GraniteParser(JsonListParser):
    """Reads a JSON list behind a tag, which Granite 3.0 writes as `<tool_call>`."""

    openings = (CALL, "<tool_call>")


class Granite(JsonListFormat):
    """What Granite 3 writes."""

    name = "granite"
    parser = GraniteParser
    markers = (CALL,)
    before = CALL + "["
    after = "]"

    def is_of(self, template: str) -> bool:
        return CALL in template


GRANITE = Granite()
