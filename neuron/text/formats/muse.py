"""Tool calls as Muse writes them: in messages that say to whom they are.

     to=self<|message|>...<|eom|><|start|>assistant to=name<|message|><atem:function_calls>
    <atem:invoke name="name">
    <atem:parameter name="key">value</atem:parameter>
    </atem:invoke>
    </atem:function_calls>

The prompt ends before the first `to=`. The thought that an answer begins with is told apart before.
"""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.invoke import Invoke, InvokeParser
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema

START, MESSAGE, END_MESSAGE, END_TURN = "<|start|>", "<|message|>", "<|eom|>", "<|eot|>"
CALLS, END_CALLS = "<atem:function_calls>", "</atem:function_calls>"
MAX_HEADER = 512  # characters


class MuseParser(InvokeParser):
    """Reads messages: sections of calls, and what is said to the user or to itself."""

    mark = "atem:"
    sections = ("function_calls",)
    openings = (CALLS, START, END_MESSAGE, END_TURN)
    starts = ("to=",)

    def call(self, opening: str) -> Steps[None]:
        if opening in (END_MESSAGE, END_TURN):
            self.forget()
            return
        if opening != CALLS:
            header, _ = yield from self.until(MESSAGE, limit=MAX_HEADER)
            if header.rpartition("to=")[2].strip() == "self":
                ends = tuple((end, ()) for end in (END_MESSAGE, END_TURN, START))
                yield from self.text_until(ends, self.think)
                self.forget()
                return
            yield from self.space()
            if not (yield from self.accept(CALLS)):
                self.forget()
                return
        yield from super().call(opening)


class Muse(Invoke):
    """What Muse writes."""

    name = "muse"
    parser = MuseParser
    section = "function_calls"
    markers = (START, MESSAGE, END_MESSAGE, END_TURN, CALLS, END_CALLS)
    between = f"{END_MESSAGE}{START}assistant"
    frames_text = True

    def is_of(self, template: str) -> bool:
        return CALLS in template

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head, end = lark.text(f" to={name}{MESSAGE}{CALLS}\n"), lark.text(f"\n{END_CALLS}")
        return f"{head} {super().written(name, schema, lark)} {end}"


MUSE = Muse()
