"""Tool calls as DeepSeek V3, R1 and V3.1 write them, in a section whose tags are tokens.

V3 and R1: <｜tool▁call▁begin｜>function<｜tool▁sep｜>name, a line break, the arguments as a block of code
V3.1:      <｜tool▁call▁begin｜>name<｜tool▁sep｜>the arguments
"""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps, Unfinished
from neuron.text.formats.lark import Lark
from neuron.text.formats.section import SectionParser
from neuron.text.formats.tool_format import Schema, ToolFormat

SECTION, END_SECTION = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
KIND, FENCE = "function", "```"


class DeepSeekParser(SectionParser):
    """Reads both: where the arguments follow at once, what stood before was the name and not the kind."""

    openings = (SECTION, CALL)
    end_section = END_SECTION
    end_call = END_CALL

    def one_call(self) -> Steps[None]:
        try:
            yield from self.name(SEPARATOR)
            if not (yield from self.peek()):
                raise Unfinished
        except Unfinished:
            if KIND.startswith(self.named_so_far):
                self.forget_name()
            raise
        if (yield from self.peek()) not in (*"{ \n",):
            self.forget_name()
            yield from self.name("\n")
        yield from self.block()

    def block(self) -> Steps[None]:
        """Read the arguments, as a block of code or not, and the end of the call."""
        self.begin()
        yield from self.space()
        if (yield from self.accept(FENCE)):
            yield from self.accept("json")
        yield from self.object(FENCE, self.end_call)
        yield from self.space()
        yield from self.accept(FENCE)
        yield from self.space()
        yield from self.accept(self.end_call)
        self.end()


class DeepSeekV3(ToolFormat):
    """What DeepSeek V3 and R1 write."""

    name = "deepseek_v3"
    parser = DeepSeekParser
    markers = (SECTION, END_SECTION, CALL, SEPARATOR, END_CALL)
    before, between, after = SECTION, "\n", END_SECTION

    def is_of(self, template: str) -> bool:
        return CALL in template and FENCE in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head = lark.text(f"{CALL}{KIND}{SEPARATOR}{name}\n{FENCE}json\n")
        return f"{head} {lark.json(schema)} {lark.text(f'{chr(10)}{FENCE}{END_CALL}')}"


class DeepSeekV31(DeepSeekV3):
    """What DeepSeek V3.1 writes."""

    name = "deepseek_v31"
    between = ""

    def is_of(self, template: str) -> bool:
        return CALL in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        return f"{lark.text(CALL + name + SEPARATOR)} {lark.json(schema)} {lark.text(END_CALL)}"


DEEPSEEK_V3, DEEPSEEK_V31 = DeepSeekV3(), DeepSeekV31()
