"""Grammars of tool calls, in the words of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# Between JSON's marks: a space, or a line break and an indentation. A model cannot write space for ever.
WHITESPACE = r" |\n(?: {0,32}|\t{0,8})"
JSON_OPTIONS = {"x-guidance": {"whitespace_pattern": WHITESPACE}}


class Lark:
    """Writes expressions, and collects the rules that they refer to.

    Args:
        tokens: parts of tags that are tokens of their own, and their ids. A model writes them as such.
    """

    def __init__(self, tokens: Mapping[str, int] | None = None) -> None:
        self.rules: list[str] = []
        self._tokens = tokens or {}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def has_token(self, text: str) -> bool:
        """Whether a part of this text is a token of its own."""
        return any(token in text for token in self._tokens)

    def text(self, text: str) -> str:
        """Exactly this text."""
        pieces = self._split.split(text) if self._split else [text]
        return " ".join(
            f"<[{self._tokens[piece]}]>" if piece in self._tokens else quoted(piece)
            for piece in pieces
            if piece or len(pieces) == 1
        )

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON that is valid against `schema`."""
        return f"%json {quoted({**schema, **JSON_OPTIONS})}"

    def rule(self, expression: str) -> str:
        """A rule of its own for `expression`: its name."""
        self.rules.append(f"rule_{len(self.rules)}: {expression}")
        return f"rule_{len(self.rules) - 1}"

    def terminal(self, expression: str) -> str:
        """The same for a terminal: a regular expression, or several joined by `&`, `|` or `~`."""
        self.rules.append(f"TERMINAL_{len(self.rules)}: {expression}")
        return f"TERMINAL_{len(self.rules) - 1}"


def quoted(value: Any) -> str:
    """JSON inside of Lark, which takes no delete character as it is."""
    return json.dumps(value).replace("\x7f", "\\u007f")
