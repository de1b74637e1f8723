"""Grammars in Lark, as far as they have to be read to be changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

Token = re.Match[str]
MAX_ROUNDS = 16  # over all of a grammar, in which definitions refer to each other

TOKEN = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*")(?P<text_flags>i?)'
    r"|(?P<pattern>/(?:\\.|[^/\\\n])+/)(?P<flags>[imsux]*)"
    r"|(?P<space>\s+|//[^\n]*|\#[^\n]*)"
    r"|%import\s+common\s*\.\s*(?P<imported>\w+)(?:\s*->\s*(?P<called>\w+))?"
    r"|(?P<ignore>%ignore\b)"
    r"|(?P<order>%\w+|@|<[^>\n]*>|\blazy\b|\bsuffix\b|\bstop\w*\b)"  # that nothing more is known of here
    r"|(?P<within>&|~(?!\s*[0-9]))"  # of terminals, not of rules
    r"|(?P<many>[*+?]|~\s*[0-9]+(?:\s*\.\.\s*[0-9]+)?|\{\s*[0-9]*\s*,?\s*[0-9]*\s*\})"
    r"|(?P<alias>->\s*\w+)"
    r"|(?P<name>[A-Za-z_][\w-]*)"
    r"|(?P<other>\.\.|.)",
    re.ASCII,
)


class Unfit(Exception):
    """A grammar that cannot be changed in this way."""


class Statement(NamedTuple):
    """A definition, an import or an order.

    Attributes:
        name: what it defines.
        head: its tokens up to the colon, and that; of something else, none.
        body: its other tokens.
    """

    name: str | None
    head: list[Token]
    body: list[Token]

    @property
    def is_terminal(self) -> bool:
        return self.name is not None and is_terminal(self.name)

    @property
    def imported(self) -> str | None:
        """The common terminal that it imports."""
        return self.body[0]["imported"] if self.body else None

    @property
    def ignored(self) -> bool:
        """Whether it says what is passed over."""
        return bool(self.body) and bool(self.body[0]["ignore"])


def is_terminal(name: str) -> bool:
    """Whether that is the name of a terminal, and not of a rule."""
    return name.lstrip("_")[:1].isupper()


def statements(grammar: str) -> list[Statement]:
    """All of a grammar, space and comments included."""
    tokens = [*TOKEN.finditer(grammar)]
    begins = [i for i in range(len(tokens)) if _begins(tokens, i)]
    bounds = zip([0, *begins], [*begins, len(tokens)], strict=True)
    return [_statement(tokens[start:end]) for start, end in bounds if end > start]


def _begins(tokens: list[Token], i: int) -> bool:
    token = tokens[i]
    if token["imported"] or token["ignore"] or token[0].startswith("%"):
        return True
    is_first = i == 0 or "\n" in tokens[i - 1][0]
    return is_first and bool(token["name"] or token[0] in "?!") and _colon(tokens, i) > i


def _colon(tokens: Sequence[Token], start: int = 0) -> int:
    """Where the head of a definition ends that begins at `start`; 0 where there is none."""
    for i in range(start, len(tokens)):
        token = tokens[i]
        if token[0] == ":":
            return i
        if "\n" in token[0] or token["text"] or token["pattern"]:
            return 0
    return 0


def _statement(tokens: list[Token]) -> Statement:
    if tokens[0]["imported"]:
        return Statement(tokens[0]["called"] or tokens[0]["imported"], [], tokens)
    colon = 0 if tokens[0][0].startswith("%") else _colon(tokens)
    if not colon:
        return Statement(None, [], tokens)
    name = next(token["name"] for token in tokens if token["name"])
    return Statement(name, tokens[: colon + 1], tokens[colon + 1 :])


# --- what a text may end in -----------------------------------------------------------------------------


class _Ends(NamedTuple):
    """What an expression may end in: regular expressions and names; and whether it may be nothing at all."""

    found: frozenset[str] = frozenset()
    nullable: bool = True

    def or_(self, other: _Ends) -> _Ends:
        return _Ends(self.found | other.found, self.nullable or other.nullable)

    def then(self, other: _Ends) -> _Ends:
        return _Ends(
            other.found | self.found if other.nullable else other.found, self.nullable and other.nullable
        )


def last_terminals(grammar: str) -> set[str]:
    """The regular expressions, as they are written, and the names of the terminals that a text may end in.

    Raises:
        Unfit: that cannot be told.
    """
    rules: dict[str, list[Token]] = {}  # terminals among them
    ends: set[str] = set()
    for each in statements(grammar):
        said = [token for token in each.body if not token["space"]]
        if any(token["order"] for token in (*each.head, *said)):
            raise Unfit("an order in it")
        if each.ignored:
            ends |= {token[0] for token in said[1:]}
        elif each.name is not None and not each.imported:  # what is common is never nothing
            rules[each.name] = said
    nullable: set[str] = set()
    for _ in range(MAX_ROUNDS):  # until no rule more can be nothing
        known = {name: _Reader(body, nullable).all() for name, body in rules.items()}
        more = {name for name, each in known.items() if each.nullable}
        if more == nullable:
            break
        nullable = more
    else:
        raise Unfit("too long a chain of rules in it")
    pending, seen = ["start"], set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in known and not is_terminal(name):
            pending += known[name].found
        else:
            ends.add(name)
    return {each for each in ends if each.startswith("/") or is_terminal(each)}


def _matches_nothing(token: Token) -> bool:
    """Whether a regular expression matches a text without characters, as far as anybody knows."""
    try:
        return re.match(token["pattern"][1:-1], "") is not None
    except (re.error, RecursionError, OverflowError):
        return True


class _Reader:
    """Reads the body of a rule."""

    def __init__(self, tokens: list[Token], nullable: set[str]) -> None:
        self._tokens, self._at, self._nullable = tokens, 0, nullable

    def all(self) -> _Ends:
        ends = self._ways()
        if self._at < len(self._tokens):
            raise Unfit(f"{self._tokens[self._at][0]} in a rule")
        return ends

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _ways(self) -> _Ends:
        ends = self._sequence()
        while self._peek() == "|":
            self._at += 1
            ends = ends.or_(self._sequence())
        return ends

    def _sequence(self) -> _Ends:
        ends = _Ends()
        while self._peek() not in ("", "|", ")", "]"):
            if self._tokens[self._at]["alias"]:
                self._at += 1
            else:
                ends = ends.then(self._item())
        return ends

    def _item(self) -> _Ends:
        token = self._tokens[self._at]
        self._at += 1
        if token[0] in "([":
            ends = self._ways()
            if self._peek() != {"(": ")", "[": "]"}[token[0]]:
                raise Unfit("a parenthesis in a rule")
            self._at += 1
            ends = ends if token[0] == "(" else ends.or_(_Ends())
        elif token["text"]:
            ends = _Ends(nullable=token["text"] == '""')
        elif token["pattern"]:
            ends = _Ends(frozenset((token[0],)), _matches_nothing(token))
        elif token["name"]:
            ends = _Ends(frozenset((token[0],)), token[0] in self._nullable)
        elif token[0] == ".." or (token["within"] and token[0] == "&"):  # as if the other side were not there
            return self._item()
        elif token["within"]:  # of what something is not, nothing is known
            self._item()
            return _Ends()
        else:
            raise Unfit(f"{token[0]} in a rule")
        if self._at < len(self._tokens) and self._tokens[self._at]["many"]:
            self._at += 1
            ends = ends.or_(_Ends())
        return ends


def without(grammar: str, never: str) -> str:
    """The same grammar, no terminal of which has `never` in it.

    Raises:
        Unfit: that cannot be said.
    """
    limit = f" & ~/(?s:.*){escaped(never)}(?s:.*)/"
    hoisted: dict[str, str] = {}

    def named(token: Token) -> str:
        if not token["pattern"]:
            return token[0]
        return hoisted.setdefault(token[0], f"LIMITED_{len(hoisted)}")

    said = []
    for each in statements(grammar):
        head, body = "".join(token[0] for token in each.head), each.body
        if each.is_terminal and not each.imported:
            expression = "".join(" " if token["space"] else token[0] for token in body)
            said.append(f"{head} ({expression.strip()}){limit}\n")
        else:
            said.append(head + "".join(token[0] if each.ignored else named(token) for token in body))
    return "".join([*said, *(f"\n{name}: {regex}{limit}" for regex, name in hoisted.items())])


def escaped(text: str) -> str:
    """A text as a regular expression in Lark, where slashes end it."""
    return "".join(each if each.isascii() and each.isalnum() else f"\\x{{{ord(each):x}}}" for each in text)
