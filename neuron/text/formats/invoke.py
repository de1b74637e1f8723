"""Tool calls in a section of tags that invoke tools by name. MiniMax M2 writes them bare, DeepSeek from V3.2
on with a mark of its own in each tag and the kind of each value beside its key.

<minimax:tool_call>
<invoke name="name">
<parameter name="key">value</parameter>
</invoke>
</minimax:tool_call>
"""

from __future__ import annotations

from typing import ClassVar

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.parameter_grammar import Tags, parameters
from neuron.text.formats.parameters import Ends, ParametersParser
from neuron.text.formats.schema_types import ANY
from neuron.text.formats.tool_format import Schema, ToolFormat


class InvokeParser(ParametersParser):
    """Reads sections of calls; `mark` stands in every tag.

    Attributes:
        sections: what a section may be called.
    """

    mark: ClassVar[str] = ""
    sections: ClassVar[tuple[str, ...]]

    @classmethod
    def tag(cls, name: str) -> str:
        """The beginning of a tag, or all of one that ends something."""
        return f"</{cls.mark}{name[1:]}>" if name.startswith("/") else f"<{cls.mark}{name}"

    @classmethod
    def ends(cls) -> Ends:
        """What ends a value."""
        behind = (cls.tag("parameter"), cls.tag("/invoke"))
        return (
            (cls.tag("/parameter"), (behind,)),
            # A value whose end tag is missing is over where the answer is.
            (cls.tag("/invoke"), (tuple(cls.tag(f"/{section}") for section in cls.sections), ())),
        )

    def call(self, opening: str) -> Steps[None]:
        invoke = self.tag("invoke") + ' name="'
        yield from self.space()
        yield from self.expect(invoke)
        while True:
            yield from self._invoked()
            yield from self.space()
            if not (yield from self.accept(invoke)):
                break
        yield from self.accept(*(self.tag(f"/{section}") for section in self.sections))

    def _invoked(self) -> Steps[None]:
        parameter, end = self.tag("parameter") + ' name="', self.tag("/invoke")
        yield from self.name('">')
        yield from self.space()
        mark = yield from self.expect(parameter, end)
        self.begin()
        while mark == parameter:
            mark = yield from self.one_parameter()
            if mark != end:
                yield from self.space()
                mark = yield from self.behind(parameter, end)
        yield from self.end_arguments()
        self.end()

    def one_parameter(self) -> Steps[str]:
        """Take a key, its value, and what ends it: that is returned."""
        key, _ = yield from self.until('">')
        return (yield from self.parameter(key, self.ends()))


class MiniMaxM2Parser(InvokeParser):
    """Knows types by the schema."""

    sections = ("minimax:tool_call",)
    openings = ("<minimax:tool_call>",)


class DsmlParser(InvokeParser):
    """Knows for each value whether it is a string."""

    mark = "｜DSML｜"
    sections = ("function_calls", "tool_calls")
    openings = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")

    def one_parameter(self) -> Steps[str]:
        key, kind = yield from self.until('" string="true">', '" string="false">', '">')
        if kind == '" string="true">':
            return (yield from self.string_parameter(key, self.ends()))
        types = self.types(key) if kind == '">' else ANY - {"string"}
        return (yield from self.parameter(key, self.ends(), types))


class Invoke(ToolFormat):
    """A format of this kind; `section` is what its section is called."""

    parser: ClassVar[type[InvokeParser]]
    section: ClassVar[str]
    kinds: ClassVar[tuple[str, str]] = ('">', '">')  # behind the key of a string, and of anything else

    def is_of(self, template: str) -> bool:
        signs = (f"{self.section}>", 'invoke name="', 'parameter name="')
        return all(sign in template for sign in signs)

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        tag = self.parser.tag
        text, json = self.kinds
        tags = Tags(f'{tag("parameter")} name="', text, tag("/parameter") + "\n", tag("/parameter"), json)
        head = lark.text(f'{tag("invoke")} name="{name}">\n')
        return f"{head} {parameters(schema, tags, lark)} {lark.text(tag('/invoke'))}"


class MiniMaxM2(Invoke):
    """What MiniMax M2 writes."""

    name = "minimax_m2"
    parser = MiniMaxM2Parser
    section = "minimax:tool_call"
    markers = ("<minimax:tool_call>", "</minimax:tool_call>")
    before, after = "<minimax:tool_call>\n", "\n</minimax:tool_call>"


class DeepSeekV32(Invoke):
    """What DeepSeek V3.2 writes."""

    name = "deepseek_v32"
    parser = DsmlParser
    section = "function_calls"
    markers = ("｜DSML｜",)
    kinds = ('" string="true">', '" string="false">')
    before, after = "<｜DSML｜function_calls>\n", "\n</｜DSML｜function_calls>"

    def is_of(self, template: str) -> bool:
        return "｜DSML｜" in template and super().is_of(template)


class DeepSeekV4(DeepSeekV32):
    """What DeepSeek V4 writes."""

    name = "deepseek_v4"
    section = "tool_calls"
    before, after = "<｜DSML｜tool_calls>\n", "\n</｜DSML｜tool_calls>"


MINIMAX_M2, DEEPSEEK_V32, DEEPSEEK_V4 = MiniMaxM2(), DeepSeekV32(), DeepSeekV4()
