"""The grammar of a text that is the only argument of a tool: how it can stand inside of a call."""

from __future__ import annotations

from functools import lru_cache, partial

from neuron.grammar.json_lark import in_json_string
from neuron.grammar.lark_rules import Unfit, escaped, last_terminals, statements, without
from neuron.grammar.structured import fault
from neuron.text.formats.lark import TextGrammar

NO_ANSWER = "no answer can satisfy it"  # as `check.py` says it


@lru_cache(64)
def text_grammar(grammar: str) -> TextGrammar:
    """What a call is held to. `grammar` was tried; what cannot be told in a way is not held there."""
    try:
        in_json = in_json_string(grammar)
    except (Unfit, RecursionError):
        in_json = None
    if in_json is not None and fault(in_json) is not None:
        in_json = None
    return TextGrammar(in_json, partial(_before, grammar))


@lru_cache(256)
def _before(grammar: str, never: str, end: str | None) -> str | None:
    try:
        if end is not None and not _ends_before(grammar, end):
            return None
        limited = without(grammar, never)
    except (Unfit, RecursionError):
        return None
    return limited if fault(limited) is None else None


def _ends_before(grammar: str, character: str) -> bool:
    """Whether no terminal that a text may end in can go on with `character` where it could be over: the lexer
    takes all that it can, and the text would not come to its end."""
    takes = " | ".join(
        f"({each} & ({each} /{escaped(character)}(?s:.*)/))" for each in sorted(last_terminals(grammar))
    )
    if not takes:
        return True
    terminals = [each for each in statements(grammar) if each.is_terminal]
    defined = "".join(token[0] for each in terminals for token in (*each.head, *each.body))
    found = fault(f"start: TAKES\nTAKES: {takes}\n{defined}")
    return found is not None and found[0] == NO_ANSWER
