"""Tool calls as Qwen3-Coder, Qwen3.5, Nemotron 3 and Step 3.5 write them: a tag for each argument.

<tool_call>
<function=name>
<parameter=key>
value
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

from typing import ClassVar

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.parameters import ParametersParser
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"


class Qwen3CoderParser(ParametersParser):
    """Reads calls of which every part has its tag. Without the outer tag, only a known tool is called.

    Attributes:
        outer: the tags around a call.
        padding: what stands between a value and its tags.
    """

    openings = (CALL, FUNCTION)
    outer: ClassVar[tuple[str, str]] = (CALL, END_CALL)
    padding: ClassVar[str] = "\n"

    def call(self, opening: str) -> Steps[None]:
        begin_call, end_call = self.outer
        if opening == begin_call:
            yield from self.space()
            yield from self.expect(FUNCTION)
        yield from self.name(">")
        if opening == FUNCTION and not self.is_known:
            raise NoCall
        yield from self.space()
        if (yield from self.peek()) == "{":  # as Llama writes them
            self.begin()
            yield from self.object(END_FUNCTION, end_call)
            yield from self.space()
            mark = yield from self.accept(END_FUNCTION)
        else:
            mark = yield from self.expect(PARAMETER, END_FUNCTION, end_call)
            self.begin()
            mark = yield from self._parameters(mark)
        if mark != end_call:
            yield from self.space()
            yield from self.accept(end_call)
        self.end()

    def _parameters(self, mark: str) -> Steps[str]:
        """Hand out all arguments, of which the first tag was read; the tag behind them is returned."""
        behind = ((PARAMETER, END_FUNCTION, self.outer[1]),)
        without_end = ((self.outer[1],), ())  # a value whose end tag is missing is over where the answer is
        paddings = dict.fromkeys((self.padding, ""))
        ends = (
            *((padding + END_PARAMETER, behind) for padding in paddings),
            *((padding + END_FUNCTION, without_end) for padding in paddings),
        )
        while mark == PARAMETER:
            key, _ = yield from self.until(">")
            if self.padding:
                yield from self.accept(self.padding)
            mark = yield from self.parameter(key, ends)
            if not mark.endswith(END_FUNCTION):
                yield from self.space()
                mark = yield from self.behind(PARAMETER, END_FUNCTION, self.outer[1])
        yield from self.end_arguments()
        return mark


class Qwen3Coder(ToolFormat):
    """What Qwen3-Coder, Qwen3.5, Nemotron 3 and Step 3.5 write."""

    name = "qwen3_coder"
    parser: ClassVar[type[Qwen3CoderParser]] = Qwen3CoderParser
    markers = (CALL, END_CALL)

    def is_of(self, template: str) -> bool:
        return CALL in template and FUNCTION in template and PARAMETER in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        (begin_call, end_call), padding = self.parser.outer, self.parser.padding
        head = lark.text(f"{begin_call}\n{FUNCTION}{name}>\n")
        tags = Tags(PARAMETER, f">{padding}", f"{padding}{END_PARAMETER}\n", END_PARAMETER)
        end = lark.text(f"{END_FUNCTION}\n{end_call}")
        return f"{head} {parameters(schema, tags, lark)} {end}"


QWEN3_CODER = Qwen3Coder()
