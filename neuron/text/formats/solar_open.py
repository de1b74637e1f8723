"""Tool calls as Solar Open writes them: every message begins with what it is.

    <|think|>...<|end|><|begin|>assistant<|content|>...
    <|tool_calls|><|tool_call:begin|>id<|tool_call:name|>name<|tool_call:args|>{...}<|tool_call:end|>

The prompt ends behind `<|begin|>assistant`. The thought that an answer begins with is told apart before.
"""

from __future__ import annotations

from collections.abc import Sequence

from neuron.text.formats.call_parser import CallParser, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

BEGIN, THINK, CONTENT, CALLS = "<|begin|>", "<|think|>", "<|content|>", "<|tool_calls|>"
ENDS = ("<|end|>", "<|flush|>", "<|calls|>")  # of a message, of an answer, and of one that ends with calls
CALL, NAME, ARGUMENTS, END_CALL = (f"<|tool_call:{part}|>" for part in ("begin", "name", "args", "end"))
MAX_HEADER = 512  # characters, and of an id


class SolarOpenParser(CallParser):
    """Reads messages: those of calls, and the tags around others are no text."""

    openings = (BEGIN, THINK, CONTENT, CALLS, CALL, *ENDS)

    def call(self, opening: str) -> Steps[None]:
        if opening == BEGIN:
            _, opening = yield from self.until(THINK, CONTENT, CALLS, limit=MAX_HEADER)
        if opening == THINK:
            yield from self.text_until(tuple((end, ()) for end in (*ENDS, BEGIN)), self.think)
        if opening not in (CALLS, CALL):
            self.forget()
            return
        if opening == CALLS:
            yield from self.space()
            yield from self.expect(CALL)
        while True:
            yield from self._one_call()
            yield from self.space()
            if not (yield from self.accept(CALL)):
                break

    def _one_call(self) -> Steps[None]:
        yield from self.until(NAME, limit=MAX_HEADER)
        yield from self.name(ARGUMENTS)
        self.begin()
        yield from self.object(END_CALL, CALL)
        yield from self.space()
        yield from self.accept(END_CALL)
        self.end()


class SolarOpen(ToolFormat):
    """What Solar Open writes."""

    name = "solar_open"
    parser = SolarOpenParser
    markers = (BEGIN, THINK, CONTENT, CALLS, *ENDS, CALL, NAME, ARGUMENTS, END_CALL)
    before, between = CALLS, ""
    frames_text = True

    def is_of(self, template: str) -> bool:
        return CALL in template and ARGUMENTS in template

    def rules(self, tools: Sequence[tuple[str, Schema]], once: bool, lark: Lark) -> list[str]:
        calls, *others = super().rules(tools, once, lark)
        # Behind a thought, which may have come, a new message begins.
        return [calls.replace("calls: ", f"calls: ({lark.text(BEGIN + 'assistant')})? ", 1), *others]

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        head, number = lark.text(CALL), lark.terminal("/[0-9a-z]{1,16}/")
        return (
            f"{head} {number} {lark.text(NAME + name + ARGUMENTS)} {lark.json(schema)} {lark.text(END_CALL)}"
        )


SOLAR_OPEN = SolarOpen()
