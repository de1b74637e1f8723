"""Grammars in Lark of texts that stand in a JSON string, and so are spelled otherwise than they are.

    in_json_string('start: "a\\n" /[^x]*/')     # of what stands between the quotes

Each character has one spelling: itself, or where JSON has none for it as it is, its shortest escape. A lexer
that looks one byte ahead cannot tell what an escape belongs to before it is over. So no terminal has more in
it than one escape: a text becomes several, and a terminal that has to becomes a rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from neuron.grammar.json_regex import class_of, literal, pattern, single, spells_itself
from neuron.grammar.lark_rules import MAX_ROUNDS, Statement, Token, Unfit, statements

# Common terminals with characters in them that have another spelling, and without.
COMMON = {
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
}
AS_THEY_ARE = frozenset(
    (
        *("CNAME", "DECIMAL", "DIGIT", "FLOAT", "HEXDIGIT", "INT", "LCASE_LETTER", "LETTER", "NUMBER"),
        *("SIGNED_FLOAT", "SIGNED_INT", "SIGNED_NUMBER", "UCASE_LETTER", "WORD"),
    )
)


def in_json_string(grammar: str) -> str:
    """The grammar of the same texts, as they are spelled in a JSON string.

    Raises:
        Unfit: it has something in it of which no counterpart is known.
    """
    found = statements(grammar)
    renamed = _terminals_to_rules(found)
    said = "".join("".join(_counterpart(statement, renamed)) for statement in found)
    if any(each.ignored for each in found) and any(
        _is_spelled(token, renamed) for each in found if not each.ignored for token in each.body
    ):
        raise Unfit("what it ignores would be ignored within what was one terminal")
    return said


def _terminals_to_rules(found: list[Statement]) -> dict[str, str]:
    """Names of terminals that have to be rules, and what they are called as such."""
    defined = [each for each in found if each.is_terminal]
    renamed: dict[str, str] = {}
    for _ in range(MAX_ROUNDS):
        more = [
            each
            for each in defined
            if each.name not in renamed
            and (each.imported in COMMON or any(_is_spelled(token, renamed) for token in each.body))
        ]
        for each in more:
            renamed[each.name] = f"spelled_{len(renamed)}"
        if not more:
            return renamed
    raise Unfit("too long a chain of terminals in it")


def _is_spelled(token: Token, renamed: dict[str, str]) -> bool:
    """Whether something in it has another spelling."""
    if token["text"]:
        return not spells_itself(re.escape(_text(token)))
    if token["pattern"]:
        return not spells_itself(*_regex(token))
    return token["name"] in renamed


def _counterpart(statement: Statement, renamed: dict[str, str]) -> Iterator[str]:
    if statement.imported:
        yield _imported(statement.body[0], renamed)
        yield "".join(token[0] for token in statement.body[1:])
        return
    if statement.ignored:
        yield _ignored(statement, renamed)
        return
    for token in (*statement.head, *statement.body):
        is_split = token["within"] and statement.name in renamed
        if token["order"] or is_split:
            raise Unfit(f"{token[0]} in it")
    yield "".join(renamed.get(token[0], token[0]) for token in statement.head)
    tokens = iter(enumerate(statement.body))
    for i, token in tokens:
        following = statement.body[i + 1 : i + 3]
        if token["text"] and len(following) == 2 and following[0][0] == ".." and following[1]["text"]:
            yield class_of(_text(token), _text(following[1]))
            next(tokens), next(tokens)
        elif token["text"]:
            yield literal(_text(token), bool(token["text_flags"]))
        elif token["pattern"] and _is_spelled(token, renamed):
            yield pattern(*_regex(token))
        else:
            yield renamed.get(token[0], token[0])


def _imported(token: Token, renamed: dict[str, str]) -> str:
    name, called = token["imported"], token["called"] or token["imported"]
    if called in renamed:
        return f"{renamed[called]}: {pattern(COMMON[name], 0)}"
    if name in AS_THEY_ARE:
        return token[0]
    raise Unfit(f"common.{name} in it")


def _ignored(statement: Statement, renamed: dict[str, str]) -> str:
    """What is passed over, however often it comes: what has another spelling, one character at a time."""
    said = [token for token in statement.body[1:] if not token["space"]]
    if not any(_is_spelled(token, renamed) for token in said):
        return "".join(token[0] for token in statement.body)
    if len(said) == 1 and said[0]["pattern"]:
        return f"%ignore {single(*_regex(said[0]))}\n"
    if len(said) == 1 and said[0][0] in COMMON:
        return f"%ignore {single(COMMON[said[0][0]], 0)}\n"
    raise Unfit("what it ignores")


def _text(token: Token) -> str:
    try:
        return json.loads(token["text"], strict=False)
    except ValueError as error:
        raise Unfit(f"the text {token['text']} in it") from error


def _regex(token: Token) -> tuple[str, int]:
    """A regular expression and its flags, as Python has them."""
    return token["pattern"][1:-1], sum(getattr(re, letter.upper()) for letter in {*token["flags"]} - {"u"})
