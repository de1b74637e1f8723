"""Tool calls as MiniCPM 5 writes them: `<function name="f"><param name="key">value</param></function>`.

A value with line breaks or angle brackets in it stands in `<![CDATA[` and `]]>`.
"""

from __future__ import annotations

from neuron.text.formats.call_parser import NoCall, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.parameters import ParametersParser
from neuron.text.formats.tool_format import Schema, ToolFormat

FUNCTION, END_FUNCTION = '<function name="', "</function>"
PARAM, END_PARAM = '<param name="', "</param>"
CDATA, END_CDATA = "<![CDATA[", "]]>"
CLOSED = '">'

_ENDS = ((END_PARAM, ((PARAM, END_FUNCTION),)), (END_FUNCTION, ((),)))
_CDATA_ENDS = ((END_CDATA, ((END_PARAM,),)), *_ENDS)


class MiniCpm5Parser(ParametersParser):
    """Reads calls of known tools."""

    openings = (FUNCTION,)

    def call(self, opening: str) -> Steps[None]:
        yield from self.name(CLOSED)
        if not self.is_known:
            raise NoCall
        yield from self.space()
        mark = yield from self.expect(PARAM, END_FUNCTION)
        self.begin()
        while mark == PARAM:
            key, _ = yield from self.until(CLOSED)
            cdata = yield from self.accept(CDATA)
            mark = yield from self.parameter(key, _CDATA_ENDS if cdata else _ENDS)
            if mark == END_CDATA:
                yield from self.space()
                yield from self.accept(END_PARAM)
            if mark != END_FUNCTION:
                yield from self.space()
                mark = yield from self.behind(PARAM, END_FUNCTION)
        yield from self.end_arguments()
        self.end()


class MiniCpm5(ToolFormat):
    """What MiniCPM 5 writes."""

    name = "minicpm5"
    parser = MiniCpm5Parser

    def is_of(self, template: str) -> bool:
        return FUNCTION in template and PARAM in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        tags = Tags(PARAM, CLOSED, END_PARAM, END_PARAM)
        head = lark.text(FUNCTION + name + CLOSED)
        return f"{head} {parameters(schema, tags, lark)} {lark.text(END_FUNCTION)}"


MINICPM5 = MiniCpm5()
