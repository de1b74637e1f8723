"""Tool calls that are written as calls of Python functions: `[f(a=1, b="x"), g()]`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from neuron.text.formats.bare import BareParser
from neuron.text.formats.call_parser import CallParser, NoCall, Steps
from neuron.text.formats.lark import Lark
from neuron.text.formats.literals import LiteralParser
from neuron.text.formats.python_grammar import keywords
from neuron.text.formats.tool_format import Call, Schema, ToolFormat

MAX_KEY = 256  # characters of the name of an argument
_NAME = re.compile(r"[\w.\-]+")
_NO_KEY = (*"()[]{},'\"",)  # characters of other things
_FUNCTION = re.compile(r"\[func(tion)?(_name)?1?\(")  # as the prompts of templates show it


class PythonicParser(BareParser, LiteralParser):
    """Reads calls in a list that may stand between two tags."""

    starts = ("[",)
    name_pattern = _NAME

    def calls_behind(self, opening: str) -> Steps[None]:
        yield from self.space()
        if self.is_bare or (yield from self.accept("[")):
            yield from self._list()
        else:
            yield from self.function()

    def _list(self) -> Steps[None]:
        while True:
            yield from self.function()
            yield from self.space()
            comma = yield from self.accept(",")
            yield from self.space()
            if (yield from self.accept("]")):
                return
            if not comma:
                if (yield from self.peek()) and (yield from self._goes_on(self.ends)) is None:
                    raise NoCall
                return
            if not (yield from self.peek()):
                return

    def function(self) -> Steps[None]:
        """Read a call, up to the bracket behind its arguments."""
        yield from self.name("(")
        self.open()
        yield from self.space()
        while not (yield from self.accept(")")) and not (yield from self.is_over()):
            if (yield from self.accept("**")):
                yield from self.space()
                yield from self.expect("{")
                yield from self.members()
            else:
                key, mark = yield from self.until("=", *_NO_KEY, limit=MAX_KEY)
                if mark != "=" or not _NAME.fullmatch(key := key.strip()):
                    raise NoCall
                yield from self.space()
                self.argument(key)
                yield from self.literal()
            yield from self.space()
            if not (yield from self.is_over()) and (yield from self.expect(",", ")")) == ")":
                break
            yield from self.space()
        self.close()


class LlamaParser(PythonicParser):
    """Reads calls as Llama 4 writes them."""

    openings = ("<|python_start|>",)
    ends = ("<|python_end|>",)


class Pythonic(ToolFormat):
    """What Llama 4 writes, and Llama 3.2 and others where their prompt shows it."""

    name = "pythonic"
    parser: ClassVar[type[CallParser]] = LlamaParser
    markers: ClassVar[tuple[str, ...]] = ("<|python_start|>", "<|python_end|>")
    before = "["
    between = ", "
    after = "]"

    def is_of(self, template: str) -> bool:
        return bool(_FUNCTION.search(template))

    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        return f"{lark.text(name + '(')} {keywords(schema, lark)} {lark.text(')')}"

    def as_text(self, calls: Sequence[Call]) -> str:
        written = (f"{name}({_keywords(given)})" for name, given in calls)
        return self.before + self.between.join(written) + self.after


def _keywords(arguments: dict[str, Any]) -> str:
    try:
        if all(map(_NAME.fullmatch, arguments)):
            return ", ".join(f"{key}={_python(value)}" for key, value in arguments.items())
        return f"**{_python(arguments)}"
    except RecursionError:
        return f"**{json.dumps(arguments, ensure_ascii=False)}"  # which goes deeper


def _python(value: Any) -> str:
    """A value of JSON in Python, its strings as JSON has them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_python(key)}: {_python(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_python, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


CALL, END_CALL = "<|tool_call_start|>", "<|tool_call_end|>"


class Lfm2Parser(PythonicParser):
    """Reads calls as LFM2 writes them."""

    openings = (CALL,)
    starts = ()
    ends = (END_CALL,)


class Lfm2(Pythonic):
    """What LFM2 writes."""

    name = "lfm2"
    parser = Lfm2Parser
    markers = (CALL, END_CALL)
    before = CALL + "["
    after = "]" + END_CALL

    def is_of(self, template: str) -> bool:
        return CALL in template or "List of tools: " in template  # they say no more


PYTHONIC = Pythonic()
LFM2 = Lfm2()
