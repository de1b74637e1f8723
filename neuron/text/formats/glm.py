"""Tool calls as GLM 4.5 and later, Ling and Laguna write them: keys and values in turn.

<tool_call>name
<arg_key>key</arg_key>
<arg_value>value</arg_value>
</tool_call>
"""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.parameters import ParametersParser
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"
# A value whose end tag is missing is over where the answer is.
ENDS = ((END_VALUE, ((KEY, END_CALL),)), (END_CALL, ((),)))


class GlmParser(ParametersParser):
    """Reads calls that begin with a name in bare text."""

    openings = (CALL,)

    def call(self, opening: str) -> Steps[None]:
        mark = yield from self.name(KEY, END_CALL)
        self.begin()
        while mark == KEY:
            key, _ = yield from self.until(END_KEY)
            yield from self.space()
            yield from self.expect(VALUE)
            end = yield from self.parameter(key, ENDS)
            yield from self.space()
            mark = END_CALL if end == END_CALL else (yield from self.accept(KEY, END_CALL))
        yield from self.end_arguments()
        self.end()


class Glm(ToolFormat):
    """What GLM 4.5 and later, Ling and Laguna write."""

    name = "glm"
    parser = GlmParser
    markers = (CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)

    def is_of(self, template: str) -> bool:
        return CALL in template and KEY in template and VALUE in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        tags = Tags(KEY, f"{END_KEY}\n{VALUE}", f"{END_VALUE}\n", END_VALUE)
        return (
            f"{lark.text(f'{CALL}{name}' + chr(10))} {parameters(schema, tags, lark)} {lark.text(END_CALL)}"
        )


GLM = Glm()
