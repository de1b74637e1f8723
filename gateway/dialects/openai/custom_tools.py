"""Tools that take a text of any form. A model is shown a function whose one argument, `input`, is that."""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.dialects.writing import encode
from ipc.messages.conversation import Tool

INPUT = "input"


def as_function(name: str, description: str | None, syntax: str | None = None, grammar: str = "") -> Tool:
    """The function that stands for a tool. The model is told of its grammar, and held to it where calls are
    held to their schema.

    Args:
        syntax: of `grammar`, which the whole text follows: "lark" or "regex"; None: there is none.
    """
    text: dict[str, Any] = {"type": "string"}
    told = [description] if description else []
    if syntax is not None:
        told.append(f"The input follows this grammar ({syntax}):\n{grammar}")
    if syntax == "regex":
        text["pattern"] = f"^(?:{grammar})$"
    schema = {
        "type": "object",
        "properties": {INPUT: text},
        "required": [INPUT],
        "additionalProperties": False,
    }
    held = grammar if syntax == "lark" else None
    return Tool.function(name, held, description="\n\n".join(told), parameters=schema)


def as_arguments(text: str) -> str:
    """The arguments with which the function is called for `text`."""
    return encode({INPUT: text}).decode()


def as_input(arguments: str) -> str:
    """The text in whole arguments; what is no call of such a function is the text itself."""
    reader = InputReader()
    return reader.push(arguments) + reader.finish()


_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
LONGEST_OPENING = 256  # characters, space among them
# As much of a JSON string as is surely whole: no half of an escape, nor of a surrogate pair.
_HIGH, _HEX = r"[dD][89abAB][0-9a-fA-F]{2}", r"[0-9a-fA-F]{4}"
_INSIDE = re.compile(rf'(?:[^"\\]|\\u{_HIGH}\\u{_HEX}|\\u(?!{_HIGH}){_HEX}|\\[^u])*')


class InputReader:
    """Reads the text out of arguments as they come, in time that is linear in their length."""

    def __init__(self) -> None:
        self._held = ""
        self._others: list[str] = []  # pieces of arguments that do not begin with the text
        self._opened = self._closed = False

    def push(self, arguments: str) -> str:
        """Take more; the text that is sure."""
        if self._closed:
            return ""
        if self._others:
            self._others.append(arguments)
            return ""
        self._held += arguments
        if not self._opened:
            opening = _OPENING.match(self._held)
            if opening is None:
                if len(self._held) > LONGEST_OPENING:
                    self._others.append(self._held)
                return ""
            self._opened = True
            self._held = self._held[opening.end() :]
        end = _INSIDE.match(self._held).end()
        inside, self._held = self._held[:end], self._held[end:]
        self._closed = self._held.startswith('"')
        return _unescaped(inside)

    def finish(self) -> str:
        """What was held back, once it is known that nothing follows."""
        held, self._held = "".join(self._others) or self._held, ""
        if self._closed:
            return ""
        return held if self._opened else _other(held)


def _unescaped(inside: str) -> str:
    try:
        text = json.loads(f'"{inside}"', strict=False)  # models write line ends as they are
    except ValueError:  # an escape that JSON does not have
        return inside
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _other(arguments: str) -> str:
    """The text in arguments that do not begin with it, or all of them where it is not there."""
    try:
        value = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    text = value.get(INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments
