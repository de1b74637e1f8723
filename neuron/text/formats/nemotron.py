"""Tool calls as Nemotron writes them before its third generation: `<TOOLCALL>[{"name": ...}]</TOOLCALL>`."""

from __future__ import annotations

from neuron.text.formats.json_list import JsonListFormat, JsonListParser

CALLS, END_CALLS = "<TOOLCALL>", "</TOOLCALL>"


class NemotronParser(JsonListParser):
    """Reads a JSON list between two tags."""

    openings = (CALLS,)
    ends = (END_CALLS,)


class Nemotron(JsonListFormat):
    """What Nemotron Nano 2, and Llama Nemotron since 1.5, write."""

    name = "nemotron"
    parser = NemotronParser
    markers = (CALLS, END_CALLS)
    before, after = CALLS + "[", "]" + END_CALLS

    def is_of(self, template: str) -> bool:
        return CALLS in template


NEMOTRON = Nemotron()
