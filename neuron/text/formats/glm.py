"""Tool calls as GLM 4.5 and later, Ling and Laguna write them: keys and values in turn.

<tool_call>name
<arg_key>key</arg_key>
<arg_value>value</arg_value>
</tool_call>
"""

from __future__ import annotations

from typing import ClassVar

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.parameters import ParametersParser
from neuron.text.formats.tool_format import Schema, ToolFormat

CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"


class GlmParser(ParametersParser):
    """Reads calls that begin with a name in bare text.

    Attributes:
        mark: stands at the end of every tag's name.
        name_ends: what else may end the name of a call.
    """

    mark: ClassVar[str] = ""
    name_ends: ClassVar[tuple[str, ...]] = ()
    openings = (CALL,)

    @classmethod
    def tag(cls, tag: str) -> str:
        """A tag as it is here."""
        return tag.replace(">", f"{cls.mark}>")

    def call(self, opening: str) -> Steps[None]:
        key_tag, end_call = self.tag(KEY), self.tag(END_CALL)
        # A value whose end tag is missing is over where the answer is.
        ends = ((self.tag(END_VALUE), ((key_tag, end_call),)), (end_call, ((),)))
        mark = yield from self.name(key_tag, end_call, *self.name_ends)
        if mark in self.name_ends:
            yield from self.space()
            mark = yield from self.expect(key_tag, end_call)
        while mark == key_tag:
            key, _ = yield from self.until(self.tag(END_KEY))
            yield from self.space()
            yield from self.expect(self.tag(VALUE))
            if not self.in_call:
                self.begin()
            mark = yield from self.parameter(key, ends)
            if mark != end_call:
                yield from self.space()
                mark = yield from self.behind(key_tag, end_call)
        if not self.in_call:
            self.begin()
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
