"""Tool calls in OpenAI's Harmony format, as gpt-oss writes them: every message stands in a channel.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant
    <|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>

The thought that an answer begins with is told apart before (see `neuron/text/reasoning.py`); later ones here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from neuron.text.formats.call_parser import CallParser, NoCall, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.tool_format import Schema, ToolFormat

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
NAMESPACE = "functions."
MAX_HEADER = 512  # characters
_RECIPIENT = re.compile(r"\bto=(\S+)")


class HarmonyParser(CallParser):
    """Reads messages: those to a tool are calls, and the tags around the others are no text."""

    openings = (CHANNEL, START, END, CALL, RETURN)

    def call(self, opening: str) -> Steps[None]:
        if opening in (END, CALL, RETURN):
            self.forget()
            return
        header, _ = yield from self.until(MESSAGE, limit=MAX_HEADER)
        header = header.replace(CHANNEL, " ").replace(CONSTRAIN, " ")
        recipient = _RECIPIENT.search(header)
        if recipient is not None and self._is_tool(recipient[1]):
            self.named(recipient[1].removeprefix(NAMESPACE))
            yield from self._arguments()
        elif recipient is not None:
            raise NoCall  # a tool of the model's makers, which nobody offered
        elif "analysis" in header.split():
            yield from self.text_until(tuple((end, ()) for end in (END, START, RETURN)), self.think)
            self.forget()
        else:
            self.forget()

    def _is_tool(self, recipient: str) -> bool:
        return recipient in self.tools or (bool(self.tools) and recipient.startswith(NAMESPACE))

    def _arguments(self) -> Steps[None]:
        yield from self.space()
        if (yield from self.accept(CALL, END)):
            self.begin("{}")
            self.end()
            return
        if (yield from self.peek()) not in ("{", ""):
            raise NoCall
        self.begin()
        yield from self.object(CALL, END, START)
        self.end()
        yield from self.space()
        yield from self.accept(CALL, END)


class Harmony(ToolFormat):
    """What gpt-oss writes. It ends its turn with a call, so there is one."""

    name = "harmony"
    parser = HarmonyParser
    markers = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
    frames_text = True

    def is_of(self, template: str) -> bool:
        return CHANNEL in template and CALL in template

    def rules(self, tools: Sequence[tuple[str, Schema]], once: bool, lark: Lark) -> list[str]:
        calls, *others = super().rules(tools, True, lark)
        # Behind a thought, which may have come, a new message begins.
        return [calls.replace("calls: ", f"calls: ({lark.text(START + 'assistant')})? ", 1), *others]

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        header = f"{CHANNEL}commentary to={NAMESPACE}{name} {CONSTRAIN}json{MESSAGE}"
        return f"{lark.text(header)} {lark.json(schema)}"  # what ends it ends the answer


HARMONY = Harmony()
