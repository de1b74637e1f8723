"""Tool calls in the Hermes format: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the text."""

from __future__ import annotations

import json

from neuron.text.formats.json_list import JsonListParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<tool_call>", "</tool_call>"


class HermesParser(JsonListParser):
    """Reads JSON objects between two tags: one each, or several in a list."""

    openings = (CALL,)
    ends = (END_CALL,)
    is_closed = True


class Hermes(ToolFormat):
    """What Qwen, Hermes and many others write."""

    name = "hermes"
    parser = HermesParser
    markers = (CALL, END_CALL)

    def is_of(self, template: str) -> bool:
        return CALL in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head = json.dumps({"name": name})[:-1] + ', "arguments": '
        return f"{lark.text(CALL + chr(10) + head)} {lark.json(schema)} {lark.text('}' + chr(10) + END_CALL)}"


HERMES = Hermes()
