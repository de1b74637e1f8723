"""Regular expressions of texts that stand in a JSON string, as expressions in Lark: see `json_lark`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from re import _constants as sre
from typing import Any

from neuron.grammar.lark_rules import Unfit, escaped
from neuron.text.formats.lark import quoted

Nodes = Sequence[tuple[Any, Any]]  # as Python parses them

SPELLED = {chr(code): json.dumps(chr(code))[1:-1] for code in (*range(0x20), 0x22, 0x5C)}
NOTHING = '""'
_PLAIN = r'^"\\\x00-\x1f'  # characters that are their own spelling
_SPACES = {*"\t\n\v\f\r"}  # of the others
_CATEGORIES = {  # and which others are in them
    sre.CATEGORY_DIGIT: (r"\d", set()),
    sre.CATEGORY_NOT_DIGIT: (r"\D", {*SPELLED}),
    sre.CATEGORY_WORD: (r"\w", set()),
    sre.CATEGORY_NOT_WORD: (r"\W", {*SPELLED}),
    sre.CATEGORY_SPACE: (r"\s", _SPACES),
    sre.CATEGORY_NOT_SPACE: (r"\S", {*SPELLED} - _SPACES),
}


def literal(text: str, any_case: bool = False) -> str:
    """Exactly this text."""
    pieces = re.split(f"({'|'.join(map(re.escape, SPELLED))})", text)
    flag = "i" if any_case else ""
    said = [quoted(SPELLED[piece]) if piece in SPELLED else quoted(piece) + flag for piece in pieces if piece]
    return f"({' '.join(said)})" if len(said) > 1 else "".join(said) or NOTHING


def class_of(first: str, last: str) -> str:
    """One character from `first` to `last`."""
    if len(first) != 1 or len(last) != 1:
        raise Unfit("a range of texts in it")
    return _Class([(sre.RANGE, (ord(first), ord(last)))], 0).one()


def spells_itself(regex: str, flags: int = 0) -> bool:
    """Whether all that it matches stands in a JSON string as it is."""
    nodes, flags = _parsed(regex, flags)
    return _plain(nodes, flags)


def pattern(regex: str, flags: int) -> str:
    """The spellings of what a regular expression matches. A class that repeats without end takes what it can,
    as it does in a terminal; where something else follows that it could take, it is told letter by letter.
    """
    nodes, flags = _parsed(regex, flags)
    return f"({_sequence(nodes, flags, _ends_sure(nodes, flags))})"


def single(regex: str, flags: int) -> str:
    """A terminal: one character of a class, where the expression is that class, repeated; or several that are
    their own spelling."""
    nodes, flags = _parsed(regex, flags)
    inner = _repeated(nodes)
    if inner is None:
        raise Unfit("what it ignores")
    return _Class(_items(*inner, flags), flags).terminal()


@lru_cache(512)
def _parsed(regex: str, flags: int) -> tuple[Nodes, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = re._parser.parse(regex, flags)
    except (re.error, RecursionError, OverflowError, FutureWarning, DeprecationWarning) as error:
        raise Unfit(f"the regular expression {regex} in it") from error
    return tree.data, tree.state.flags


def _is_class(kind: Any) -> bool:
    return kind in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN)


def _items(kind: Any, value: Any, flags: int) -> Nodes:
    """A node that stands for one character, as a class."""
    if kind is sre.IN:
        return value
    if kind is sre.ANY:
        return [(sre.NEGATE, None)] if flags & re.DOTALL else [(sre.NEGATE, None), (sre.LITERAL, 10)]
    return [(sre.NEGATE, None), (sre.LITERAL, value)] if kind is sre.NOT_LITERAL else [(sre.LITERAL, value)]


def _inner(kind: Any, value: Any, flags: int) -> tuple[list[Nodes], int]:
    """The expressions within a node, and the flags in them."""
    if kind is sre.BRANCH:
        return [each.data for each in value[1]], flags
    if kind is sre.SUBPATTERN:
        return [value[3].data], (flags | value[1]) & ~value[2]
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return [value[2].data], flags
    raise Unfit(f"{str(kind).lower()} in a regular expression in it")


def _plain(nodes: Nodes, flags: int) -> bool:
    for kind, value in nodes:
        if _is_class(kind):
            if _Class(_items(kind, value, flags), flags).others:
                return False
        else:
            inner, within = _inner(kind, value, flags)
            if not all(_plain(each, within) for each in inner):
                return False
    return True


def _repeated(nodes: Nodes) -> tuple[Any, Any] | None:
    """The node of one character that an expression repeats without end; None where it is something else."""
    nodes = _bare(nodes)
    if len(nodes) != 1 or nodes[0][0] not in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return None
    least, most, inner = nodes[0][1]
    inner = _bare(inner.data)
    if least > 1 or most is not sre.MAXREPEAT or len(inner) != 1 or not _is_class(inner[0][0]):
        return None
    return inner[0]


def _bare(nodes: Nodes) -> Nodes:
    """Without parentheses around all of it, where they change nothing."""
    while len(nodes) == 1 and nodes[0][0] is sre.SUBPATTERN and not nodes[0][1][1] and not nodes[0][1][2]:
        nodes = nodes[0][1][3].data
    return nodes


def _ends_sure(nodes: Nodes, flags: int) -> bool:
    """Whether every class that repeats without end is followed by a character that it does not have."""
    nodes = _bare(nodes)
    for i, node in enumerate(nodes):
        if _is_class(node[0]):
            continue
        inner = _repeated([node])
        if inner is None:
            return False
        if i + 1 == len(nodes):
            return True
        kind, value = nodes[i + 1]
        if kind is not sre.LITERAL or _Class(_items(*inner, flags), flags).has(chr(value)):
            return False
    return True


def _sequence(nodes: Nodes, flags: int, in_runs: bool) -> str:
    return " ".join(_node(kind, value, flags, in_runs) for kind, value in nodes) or NOTHING


def _node(kind: Any, value: Any, flags: int, in_runs: bool) -> str:
    if _is_class(kind):
        return _Class(_items(kind, value, flags), flags).one()
    inner, within = _inner(kind, value, flags)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, _ = value
        if in_runs and (repeated := _repeated([(kind, value)])) is not None:
            return f"{_Class(_items(*repeated, flags), flags).run()}{'+' if least else '*'}"
        bound = "" if most is sre.MAXREPEAT else most
        return f"({_sequence(inner[0], flags, in_runs)}){{{least},{bound}}}"
    return f"({' | '.join(_sequence(each, within, in_runs) for each in inner)})"


class _Class:
    """A class of characters.

    Attributes:
        others: those in it that have another spelling.
    """

    def __init__(self, items: Iterable[tuple[Any, Any]], flags: int) -> None:
        self._negated, self._any_case = False, bool(flags & re.IGNORECASE)
        self._has_plain = False  # some that are their own spelling, but for a negated class, which has
        written, others = [], set[str]()
        for kind, value in items:
            if kind is sre.NEGATE:
                self._negated = True
            elif kind is sre.LITERAL:
                written.append(escaped(chr(value)))
                others |= {chr(value)} & SPELLED.keys()
                self._has_plain |= chr(value) not in SPELLED
            elif kind is sre.RANGE:
                written.append("-".join(escaped(chr(bound)) for bound in value))
                others |= (within := {each for each in SPELLED if value[0] <= ord(each) <= value[1]})
                self._has_plain |= value[1] - value[0] >= len(within)
            else:
                text, members = _CATEGORIES[value]
                written.append(text)
                others |= members
                self._has_plain = True
        self._written = "".join(written)
        self.others = {*SPELLED} - others if self._negated else others

    def has(self, character: str) -> bool:
        """Whether this character is in it."""
        if character in SPELLED:
            return character in self.others
        return bool(re.fullmatch(self._python(), character, re.IGNORECASE if self._any_case else 0))

    def _python(self) -> str:
        written = re.sub(r"\\x\{([0-9a-f]+)\}", lambda found: f"\\U{int(found[1], 16):08x}", self._written)
        return f"[{'^' if self._negated else ''}{written}]" if written else "(?s:.)"

    def one(self) -> str:
        """One of them."""
        return self._any_of(self._ways(""))

    def run(self) -> str:
        """One of them that has another spelling, or as many of the others as there are."""
        return self._any_of(self._ways("+"))

    def terminal(self) -> str:
        """The same, as one terminal."""
        return f"/{'|'.join(self._ways('+'))}/"

    def _ways(self, repeat: str) -> list[str]:
        plain = self._plain()
        ways = [plain + repeat] if plain else []
        if self.others:
            ends = "|".join(escaped(SPELLED[each][1:]) for each in sorted(self.others))
            ways.append(rf"\\(?:{ends})")
        return ways

    def _any_of(self, ways: list[str]) -> str:
        said = " | ".join(f"/{way}/" for way in ways)
        return f"({said})" if len(ways) > 1 else said

    def _plain(self) -> str:
        """Those that are their own spelling, as a regular expression; nothing where there are none."""
        if not self._negated and not self._has_plain:
            return ""
        inner = f"[{'^' if self._negated else ''}{self._written}]&&" if self._written else ""
        plain = f"[{inner}[{_PLAIN}]]" if inner else f"[{_PLAIN}]"
        return f"(?i:{plain})" if self._any_case else plain
