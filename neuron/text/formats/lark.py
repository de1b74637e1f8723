"""Grammars of tool calls, in the words of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Between JSON's marks: a space, or a line break and an indentation. A model cannot write space for ever.
WHITESPACE = r" |\n(?: {0,32}|\t{0,8})"
JSON_OPTIONS = {"x-guidance": {"whitespace_pattern": WHITESPACE}}

TEXT_GRAMMAR = ("grammar",)  # in the schema of a string: its `TextGrammar`. No client's JSON has such a key


@dataclass(frozen=True, slots=True)
class TextGrammar:
    """What the text has to be that is the only argument of a tool.

    Attributes:
        in_json: the grammar of how it is spelled in a JSON string; None: there is none.
        before: the grammar of it as it is, without a tag in it, and sure to be over where a character comes
            (None: a token); None: there is none.
    """

    in_json: str | None
    before: Callable[[str, str | None], str | None]


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

    def begins_with_token(self, text: str) -> bool:
        """Whether the beginning of this text is a token of its own."""
        return text.startswith(tuple(self._tokens))

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
        if TEXT_GRAMMAR in schema:
            return self._json_text(schema)
        for key, each in (schema.get("properties") or {}).items():
            if isinstance(each, Mapping) and TEXT_GRAMMAR in each:
                return self._json_object(key, each)
        return f"%json {quoted({**schema, **JSON_OPTIONS})}"

    def _json_text(self, schema: Mapping[str, Any]) -> str:
        """A JSON string whose text has a grammar of its own."""
        grammar: TextGrammar = schema[TEXT_GRAMMAR]
        if grammar.in_json is None:
            return self.json({key: value for key, value in schema.items() if key != TEXT_GRAMMAR})
        return f'"\\"" {self.nested(grammar.in_json)} "\\""'

    def _json_object(self, key: str, schema: Mapping[str, Any]) -> str:
        """An object that has such a string and nothing else."""
        space = self.terminal(f"/{WHITESPACE}/")
        opening = f'"{{" {space}? {quoted(quoted(key))} {space}? ":" {space}?'
        return f'{opening} {self._json_text(schema)} {space}? "}}"'

    def nested(self, grammar: str) -> str:
        """What another grammar allows."""
        return self.rule(f"%lark {{\n{grammar}\n}}")

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
