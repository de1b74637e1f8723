"""Tool calls in the Hermes format: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ipc.messages import MAX_NAME, Name, ToolCall, ToolCallDelta
from neuron.text.formats.tool_format import Part, ToolFormat
from neuron.text.tags import SPACE, outside

Phase = Literal["text", "head", "arguments", "tail", "after"]

CALL, END_CALL = "<tool_call>", "</tool_call>"
ARGUMENTS = ("arguments", "parameters", "args", "input")  # what models call them
BESIDE = ("id", "type")  # what else may stand in a call, and says nothing

# A call of which the name and the beginning of its arguments are known. From here on it is sure to be one.
_HEAD = re.compile(
    r"""\s*\{\s*
    (?:"(?:{beside})"\s*:\s*(?:"[^"\\]*"|\d+|null)\s*,\s*)*
    "name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)+")\s*,\s*
    (?:"(?:{beside})"\s*:\s*(?:"[^"\\]*"|\d+|null)\s*,\s*)*
    "(?:{arguments})"\s*:\s*(?=\{)""".replace("{beside}", "|".join(BESIDE)).replace(
        "{arguments}", "|".join(ARGUMENTS)
    ),
    re.VERBOSE,
)
# The name in a call that was cut, and whether it is whole.
_CUT_NAME = re.compile(r'\s*\{.*?"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.)*)(?P<whole>"?)', re.DOTALL)
_IN_STRING, _OUTSIDE = re.compile(r'["\\]'), re.compile(r'["{}\[\]<]')


class ToolCallParser:
    """Finds tool calls in text as it streams.

    A call is handed out as it is written, from where its name and the beginning of its arguments are known;
    its arguments are text as the model wrote it, all deltas together. What is known not to be a call before
    that (bad JSON, no name, keys that nobody knows) comes out as the text that it is.

    Args:
        names: of the tools that there are; they complete the name in a call that was cut.
        most: calls to take; what follows them is no part of the answer.
        only: the answer consists of calls and nothing else.
        first: calls come before any text, or are text.
    """

    def __init__(
        self, names: Sequence[str] = (), most: int | None = None, *, only: bool = False, first: bool = False
    ) -> None:
        self._names, self._most, self._only, self._first = names, most, only, first
        self._ended = 0  # calls
        self._begun: list[tuple[ToolCallDelta, list[str]]] = []  # the first of each call, and all arguments
        self._phase: Phase = "text"
        self._text = ""  # "text": what may be the start of a tag; else what is not handed out of the call
        self._scan = _Scan()  # of the call's JSON
        self._after_call = False  # space that comes now belongs to the tag
        self._steps = {
            "text": self._outside,
            "head": self._head,
            "arguments": self._arguments,
            "tail": self._tail,
            "after": self._after,
        }

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far; the last one may be incomplete."""
        return [
            ToolCall(id=first.call_id, name=first.name, arguments="".join(arguments))
            for first, arguments in self._begun
        ]

    @property
    def over(self) -> bool:
        """Whether there were as many calls as there may be."""
        return self._ended == self._most

    @property
    def limited(self) -> bool:
        """Whether a call may end the answer."""
        return self._most is not None

    def push(self, text: str) -> list[Part]:
        """Take more text; the parts that are sure."""
        self._text += text
        parts: list[Part] = []
        while not self.over and self._steps[self._phase](parts):
            pass
        return parts

    def finish(self, cut: bool = False) -> list[Part]:
        """What was held back, once it is known that nothing follows.

        Args:
            cut: the answer did not come to its own end, so what began as a call would have become one.
        """
        parts: list[Part] = []
        held, phase = self._text, self._phase
        self._text, self._phase = "", "text"
        if phase == "head":
            # Models may end their answer instead of the call, as the end of text says the same.
            if cut and parse_call(held) is None and held.lstrip()[:1] in ("{", ""):
                self._cut(parts, held)
            else:
                self._close(parts, held, "")
        elif phase == "arguments" and held:
            self._add(parts, held)
        elif (phase == "after" and not END_CALL.startswith(held.strip(SPACE))) or (
            phase == "text" and held and not (cut and self._only)
        ):
            parts.append(("text", held))
        return parts

    # --- each phase takes one part off the text; False when it needs more text -----------------------------

    def _outside(self, parts: list[Part]) -> bool:
        if self._after_call:
            self._text = self._text.lstrip(SPACE)
            self._after_call = not self._text
        if self._first and not self._begun:
            start = self._text.lstrip(SPACE)
            if not start.startswith(CALL[: len(start)]):
                self._steps["text"] = self._no_more_calls
                return True
        said, tag, rest = self._text.partition(CALL)
        sure = len(said) if tag else outside(CALL, said)
        if sure:
            parts.append(("text", said[:sure]))
        if not tag:
            self._text = said[sure:]
            return False
        self._phase, self._text, self._scan = "head", rest, _Scan()
        return True

    def _no_more_calls(self, parts: list[Part]) -> bool:
        if self._text:
            parts.append(("text", self._text))
        self._text = ""
        return False

    def _head(self, parts: list[Part]) -> bool:
        """In a call, which may yet turn out to be none."""
        head = _HEAD.match(self._text)
        if head is not None and (name := _decoded(head["name"])):
            self._begin(parts, name, "")
            self._phase, self._text, self._scan = "arguments", self._text[head.end() :], _Scan()
            return True
        end = self._scan.find_end(self._text)
        if end is None:
            return False
        body, self._text = self._text[:end], self._text[end + len(END_CALL) :]
        self._close(parts, body, END_CALL)
        return True

    def _arguments(self, parts: list[Part]) -> bool:
        """In the arguments of a call: all of them is handed out, as far as it cannot be the end tag."""
        end = self._scan.find_end(self._text, value=True)
        sure = self._scan.position if end is None else end
        if sure:
            self._add(parts, self._text[:sure])
        self._text = self._text[sure:]
        if end is None:
            self._scan.position = 0
            return False
        self._phase, self._scan = "tail", _Scan(depth=1)  # one brace is open: the call's own
        return True

    def _tail(self, parts: list[Part]) -> bool:
        """Behind the arguments: what else stands in the call is of no interest."""
        end = self._scan.find_end(self._text, value=True)
        self._text = self._text[self._scan.position if end is None else end :]
        self._scan.position = 0
        if end is None:
            return False
        self._phase = "after"
        return True

    def _after(self, parts: list[Part]) -> bool:
        """The call is whole but for its end tag. A brace too many is dropped; a next call ends this one."""
        ends = [end for tag in (END_CALL, CALL) if (end := self._text.find(tag, self._scan.position)) >= 0]
        if not ends:
            self._scan.position = max(0, len(self._text) - len(END_CALL) + 1)
            return False
        said, rest = self._text[: min(ends)], self._text[min(ends) :]
        if rest.startswith(END_CALL):
            rest = rest.removeprefix(END_CALL)
        elif said.strip(SPACE):
            parts.append(("text", said))
        self._text = rest
        self._end()
        return True

    # --- calls ----------------------------------------------------------------------------------------------

    def _begin(self, parts: list[Part], name: str, arguments: str) -> None:
        first = ToolCallDelta(
            index=len(self._begun), call_id=f"call_{secrets.token_hex(12)}", name=name, arguments=arguments
        )
        self._begun.append((first, [arguments]))
        parts.append(("tool", first))

    def _add(self, parts: list[Part], arguments: str) -> None:
        self._begun[-1][1].append(arguments)
        parts.append(("tool", ToolCallDelta(index=len(self._begun) - 1, arguments=arguments)))

    def _close(self, parts: list[Part], body: str, ending: str) -> None:
        """A call that was not sure to be one before its end."""
        call = parse_call(body)
        if call is None:
            parts.append(("text", CALL + body + ending))
            self._phase = "text"
        else:
            self._begin(parts, *call)
            self._end()

    def _end(self) -> None:
        self._ended += 1
        self._phase, self._after_call = "text", True

    def _cut(self, parts: list[Part], body: str) -> None:
        """A call of which the rest is missing: told as far as its name is known."""
        found = _CUT_NAME.match(body)
        if found is None:
            return
        name = found["name"]
        if not found["whole"]:
            meant = [known for known in self._names if known.startswith(name)]
            name = meant[0] if len(meant) == 1 else ""
        if 0 < len(name) <= MAX_NAME:
            self._begin(parts, name, "")


class _Scan:
    """Reads the JSON of a call as it grows, as far as it must: brackets, strings, and tags outside of these.

    Args:
        depth: brackets that are open already.
    """

    __slots__ = ("_in_string", "depth", "position")

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.position = 0  # of the text, behind what was read
        self._in_string = False

    def find_end(self, text: str, value: bool = False) -> int | None:
        """Where in `text` the end tag begins or, of a `value`, its last bracket is behind; None: not yet.

        A new call ends a value, too.
        """
        while found := (_IN_STRING if self._in_string else _OUTSIDE).search(text, self.position):
            at, mark = found.start(), found[0]
            if mark == "\\":
                if at + 1 == len(text):
                    self.position = at
                    return None
                self.position = at + 2
                continue
            if mark == "<":
                rest = text[at : at + len(END_CALL)]
                tags = (END_CALL, CALL) if value else (END_CALL,)
                if rest.startswith(tags):
                    return at
                if any(tag.startswith(rest) for tag in tags):
                    self.position = at
                    return None
            self.position = at + 1
            if mark == '"':
                self._in_string = not self._in_string
            elif mark in "{[":
                self.depth += 1
            elif mark in "}]":
                self.depth -= 1
                if value and self.depth == 0:
                    return self.position
        self.position = len(text)
        return None


def parse_call(body: str) -> tuple[str, str] | None:
    """Name and arguments of the call that `body` holds, as the model wrote them; None when it holds none.

    Arguments are a JSON object, or a string that holds one, under any of the names in `ARGUMENTS`.
    """
    try:
        call = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(call.pop("name", b"null"))
        given = [bytes(call.pop(key)).decode() for key in ARGUMENTS if key in call]
        arguments = given[0] if given else "{}"
        value: Any = msgspec.json.decode(arguments)
        if isinstance(value, str):
            arguments, value = value, msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if value is None:
        arguments, value = "{}", {}
    understood = isinstance(name, str) and 0 < len(name) <= MAX_NAME and isinstance(value, dict)
    return (name, arguments) if understood and len(given) < 2 and call.keys() <= {*BESIDE} else None


def _decoded(name: str) -> str:
    """A name as JSON has it; nothing when it is none."""
    try:
        return msgspec.json.decode(name, type=Name)
    except msgspec.MsgspecError:
        return ""


def _head(name: str) -> str:
    return json.dumps({"name": name})[:-1] + ', "arguments": '


HERMES = ToolFormat("hermes", CALL, END_CALL, _head, "}", ToolCallParser)
