"""Tool calls as Hunyuan writes them: a name, and the arguments as a block of code, in a section.

<tool_calls><tool_call>name, a line break, the block</tool_call>
<tool_call>...</tool_call></tool_calls>
"""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.deepseek import FENCE, DeepSeekParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

SECTION, END_SECTION = "<tool_calls>", "</tool_calls>"
CALL, END_CALL = "<tool_call>", "</tool_call>"


class HunyuanParser(DeepSeekParser):
    """Reads a block as DeepSeek's, between other tags."""

    openings = (SECTION, CALL)
    end_section = END_SECTION
    end_call = END_CALL

    def one_call(self) -> Steps[None]:
        yield from self.space()
        yield from self.name("\n")
        yield from self.block()


class Hunyuan(ToolFormat):
    """What Hunyuan A13B and the dense ones beside it write."""

    name = "hunyuan"
    parser = HunyuanParser
    markers = (SECTION, END_SECTION, CALL, END_CALL)
    before, between, after = SECTION, "\n", END_SECTION

    def is_of(self, template: str) -> bool:
        return SECTION + CALL in template and FENCE in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head = lark.text(f"{CALL}{name}\n{FENCE}json\n")
        return f"{head} {lark.json(schema)} {lark.text(f'{chr(10)}{FENCE}{END_CALL}')}"


HUNYUAN = Hunyuan()
