"""What a way to write tool calls has to offer.

A new format is one file and one line in `registry.py`. The file holds

1. a `CallParser` that reads calls, and nothing but the syntax of the format (see `call_parser.py`);
2. a `ToolFormat`: how its chat templates are known (`is_of`), which tags are tokens in some vocabularies
   (`markers`), and how calls are written in a grammar (`written`; `before`, `between` and `after` for what is
   around them). What its templates want to be given otherwise need not be said: templates are tried.
   `as_text` is for those that show the model no calls: where there is none, these are as Hermes writes them.

What it writes in a grammar its parser reads; what its chat templates render for calls its parser reads as the
same calls. `tests/neuron/test_tool_formats.py` holds every registered format to that.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from neuron.text.formats.call_parser import CallParser
from neuron.text.formats.lark import Lark

Schema = Mapping[str, Any]
Call = tuple[str, dict[str, Any]]  # a name, and its arguments


class ToolFormat(ABC):
    """A format. Without state: one object for all models that write it.

    Attributes:
        name: by which it can be chosen.
        parser: reads calls in the text of one answer.
        markers: tags, or parts of tags, that are tokens of their own in the vocabulary of some models. They
            are text even where these tokens are special, and where they are tokens, text that merely looks
            like them is no tag.
        before, between, after: what is written around calls and between them.
        frames_text: text, too, stands between tags, so the parser is needed where no tool is offered.
    """

    name: ClassVar[str]
    parser: ClassVar[type[CallParser]]
    markers: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[str] = ""
    between: ClassVar[str] = "\n"
    after: ClassVar[str] = ""
    frames_text: ClassVar[bool] = False

    @abstractmethod
    def is_of(self, template: str) -> bool:
        """Whether a chat template has its model write calls this way."""

    @abstractmethod
    def written(self, name: str, schema: Schema, lark: Lark) -> str:
        """A call of the tool `name` as an expression of a grammar.

        Args:
            schema: of its arguments, an object. A grammar can be made of it.
            lark: writes text, JSON and rules.
        """

    def as_text(self, calls: Sequence[Call]) -> str:
        """Calls in the way that its models write them, for a template that leaves them out.

        A format without a way of its own has them as most models have seen them.
        """
        written = (
            json.dumps({"name": name, "arguments": given}, ensure_ascii=False) for name, given in calls
        )
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)

    def rules(self, tools: Sequence[tuple[str, Schema]], once: bool, lark: Lark) -> list[str]:
        """The rule `calls`, and those that it refers to.

        Args:
            tools: that may be called.
            once: there is one call, not several.
        """
        calls = [f"call_{number}: {self.written(*tool, lark)}" for number, tool in enumerate(tools)]
        any_call = " | ".join(f"call_{number}" for number in range(len(tools)))
        more = "" if once else f" ({_optional(lark, self.between)} call)*"
        before, after = _optional(lark, self.before), _optional(lark, self.after)
        return [f"calls: {before} call{more} {after}", f"call: {any_call}", *calls, *lark.rules]


def _optional(lark: Lark, text: str) -> str:
    return lark.text(text) if text else ""
