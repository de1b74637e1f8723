"""A tool whose argument is a text with a grammar in Lark is called with such a text, in every format."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Tool
from neuron.grammar.json_lark import in_json_string
from neuron.grammar.lark_rules import Unfit
from neuron.grammar.text_grammar import text_grammar
from neuron.grammar.tool_calls import require_call
from neuron.text.formats.registry import FORMATS
from tests.neuron.grammars import BYTES, encode, follow, follow_tokens

TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""  # what Codex asks for
GRAMMARS = {
    "patch": PATCH,
    "sum": r"""
        start: expr
        expr: term ("+" term)*   // of terms
        term: NUMBER | NAME | "(" expr ")"
        NAME: /[a-z]/ LETTER~0..2
        %import common.NUMBER
        %import common.LETTER
        """,
    "quoted": r"""
        start: pair ("," pair)*
        pair: KEY "=" (QUOTED | ESCAPED_STRING | "none"i)
        KEY: "A".."C" | "\\"
        QUOTED: /'[^']{0,3}'/
        %import common.ESCAPED_STRING
        """,
    "spaced": r"""
        start: NUMBER ("," NUMBER)* ";"
        %import common.NUMBER
        %ignore /[ \t\n]+/
        """,
    "classes": r"""
        start: /[^\n]*\n/ /\S+/ " " /[\s\d]{1,3}x/ ("!".."~") /a["\\]?b|c/ /(?i:k\n)/ /.*z/s
        """,
}


def accepted(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def tool(grammar: str) -> Tool:
    return Tool.function("edit", grammar, parameters=TEXT)


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_text_is_as_good_as_its_spelling_in_json(name: str) -> None:
    grammar = GRAMMARS[name]
    spelled = in_json_string(grammar)
    for seed in range(8):
        text = follow(grammar, seed, 300)
        inside = json.dumps(text, ensure_ascii=False)[1:-1]
        if accepted(grammar, text):
            assert accepted(spelled, inside), text
        inside = follow(f'start: "\\"" %lark {{\n{spelled}\n}} "\\""', seed, 300)
        if inside.endswith('"') and accepted(f'start: "\\"" %lark {{\n{spelled}\n}} "\\""', inside):
            assert accepted(grammar, json.loads(inside)), inside


NOTE = r"""
start: ">>" LF line* (line | "<<")
line: "- " /[^\n]{0,9}/ LF
%import common.LF
"""


@pytest.mark.parametrize("written", FORMATS, ids=lambda each: each.name)
def test_calls_have_texts_that_follow_the_grammar(written) -> None:
    grammar = require_call([tool(NOTE)], ["edit"], encode, "none", written=written).grammar
    assert grammar.count("%lark") == 1
    whole = 0
    for seed in range(4):
        text = follow(grammar, seed, 1500)
        parser = written.parser([tool(NOTE)])
        parser.push(text)
        parser.finish()
        [call] = parser.calls
        if accepted(grammar, text):
            whole += 1
            assert accepted(NOTE, json.loads(call.arguments)["input"]), text
    assert whole


@pytest.mark.parametrize("written", [each for each in FORMATS if each.markers], ids=lambda each: each.name)
def test_tags_that_are_tokens_are_written_around_texts(written) -> None:
    def encode_markers(text: str) -> list[int]:
        markers = written.markers
        return [256 + markers.index(text)] if text in markers else list(text.encode())

    grammar = require_call([tool(NOTE)], ["edit"], encode_markers, "none", written=written).grammar
    assert grammar.count("%lark") == 1
    parser = written.parser([tool(NOTE)], tokens=written.markers)
    parser.push(follow_tokens(grammar, written.markers, 1))
    parser.finish()
    [call] = parser.calls
    assert json.loads(call.arguments)["input"].startswith(">>\n")


ENDLESS = 'start: "a" /(?s:.*)/'


def test_what_would_run_over_the_tag_behind_it_is_held_in_json_alone() -> None:
    held = text_grammar(ENDLESS)
    assert held.in_json is not None
    assert held.before("</p>", "\n") is None
    assert held.before("</p>", None) is not None  # a token is no part of any text
    [name] = [each for each in FORMATS if each.name == "qwen3_coder"]
    grammar = require_call([tool(ENDLESS)], ["edit"], encode, "none", written=name).grammar
    assert "%lark" not in grammar
    assert "</parameter>" in grammar


@pytest.mark.parametrize(
    ("end", "held"), [(r"LF", True), (r"/\n+/", False), (r'LF "e"', True), (r"/[^\n]*/ LF?", True)]
)
def test_a_text_is_held_where_it_surely_ends_before_a_line_does(end: str, held: bool) -> None:
    grammar = f'start: "a" {end}\n%import common.LF'
    assert (text_grammar(grammar).before("</p>", "\n") is not None) == held


def test_no_text_has_the_tag_in_it_that_ends_it() -> None:
    limited = text_grammar('start: LINE /b.*/\nLINE: /[ap<>\\/]*/ "  x"').before("</p>", "\n")
    assert accepted(limited, "a<p>  xb")
    assert not accepted(limited, "a</p>  xb")
    assert not accepted(limited, "a  xb</p>")


@pytest.mark.parametrize(
    "grammar",
    [
        'start: A\nA: /[^x]*/ & ~/.*"b.*/',
        'start: "a" %json {"type": "string"}',
        'start: "a" pair\npair: "\\n" "b"\n%ignore / /',
        r"start: /a(?=\n)\n/",
    ],
)
def test_what_has_no_counterpart_is_said_to_have_none(grammar: str) -> None:
    with pytest.raises(Unfit):
        in_json_string(grammar)


@pytest.mark.parametrize("grammar", ["start: a", "start: <eos>", 'start: "a'])
def test_what_is_no_grammar_is_refused(grammar: str) -> None:
    with pytest.raises(CortexError, match="of the tool 'edit' the grammar cannot be honoured") as caught:
        require_call([tool(grammar)], ["edit"], encode, "none")
    assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, "tools")


def test_a_grammar_needs_the_one_argument_that_follows_it() -> None:
    with pytest.raises(CortexError, match="not one argument"):
        require_call([Tool.function("edit", PATCH)], ["edit"], encode, "none")


@pytest.mark.parametrize("written", FORMATS, ids=lambda each: each.name)
def test_no_key_of_a_client_s_schema_is_taken_for_a_grammar(written) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string", "x-text-grammar": 'start: "a"'}}}
    held = require_call([Tool.function("f", parameters=schema)], ["f"], encode, "none", written=written)
    assert 'start: "a"' not in held.grammar


def test_a_patch_may_be_written_in_json() -> None:
    """As the model of Codex writes them: quotes, backslashes and line ends in them."""
    grammar = require_call([tool(PATCH)], ["edit"], encode, "none").grammar
    patch = (
        "*** Begin Patch\n*** Update File: a.py\n@@ def f():\n-\tprint(\"\\n\")\n+\tprint('é')\n*** End Patch"
    )
    call = {"name": "edit", "arguments": {"input": patch}}
    text = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    assert accepted(grammar, text)
    assert not accepted(grammar, text.replace("*** End", "** End"))


@pytest.mark.parametrize(
    "grammar",
    [
        f"start: {'(' * 300}/a\\n/{')' * 300}",
        f"start: /{'(' * 300}a\\n{')' * 300}/",
        "start: r0\n" + "".join(f"r{i}: r{i + 1}?\n" for i in range(2000)) + 'r2000: "a" /\\n/',
        "start: T0\n" + "".join(f"T{i}: T{i + 1}\n" for i in range(300)) + "T300: /a\\n/",
    ],
    ids=["parentheses", "groups", "rules", "terminals"],
)
def test_what_is_deep_or_long_takes_no_time_and_breaks_nothing(grammar: str) -> None:
    text_grammar(grammar).before("</p>", "\n")
