"""Tool calls as Hunyuan 3 writes them: those of GLM, in a section, with a mark in every tag."""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.glm import CALL, END_CALL, END_KEY, END_VALUE, KEY, VALUE, GlmParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.tool_format import Schema, ToolFormat

MARK = ":opensource"
CALLS, END_CALLS, END_NAME = f"<tool_calls{MARK}>", f"</tool_calls{MARK}>", f"<tool_sep{MARK}>"


class Hy3Parser(GlmParser):
    """Reads sections of calls, and calls without one."""

    mark = MARK
    name_ends = (END_NAME,)
    openings = (CALLS, f"<tool_call{MARK}>")

    def call(self, opening: str) -> Steps[None]:
        if opening == CALLS:
            yield from self.space()
            yield from self.expect(self.tag(CALL))
        yield from super().call(opening)
        yield from self.space()
        while (yield from self.accept(self.tag(CALL))):
            yield from super().call(opening)
            yield from self.space()
        yield from self.accept(END_CALLS)


class Hy3(ToolFormat):
    """What Hunyuan 3 writes."""

    name = "hy3"
    parser = Hy3Parser
    markers = (
        *(CALLS, END_CALLS, END_NAME),
        *map(Hy3Parser.tag, (CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)),
    )
    before, after = CALLS + "\n", "\n" + END_CALLS

    def is_of(self, template: str) -> bool:
        return "<tool_sep" in template and "<arg_key" in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        tag = Hy3Parser.tag
        tags = Tags(tag(KEY), f"{tag(END_KEY)}\n{tag(VALUE)}", f"{tag(END_VALUE)}\n", tag(END_VALUE))
        head = lark.text(f"{tag(CALL)}{name}{END_NAME}\n")
        return f"{head} {parameters(schema, tags, lark)} {lark.text(tag(END_CALL))}"


HY3 = Hy3()
