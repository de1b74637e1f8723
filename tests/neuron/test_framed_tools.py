"""Formats in which text, too, stands in a frame that says to whom it is said."""

from __future__ import annotations

import json

import pytest

from ipc.messages.conversation import Tool
from neuron.text.formats.harmony import HARMONY
from neuron.text.formats.registry import BY_NAME, tool_format
from neuron.text.formats.solar_open import SOLAR_OPEN
from neuron.text.parser import AnswerParser
from neuron.text.reasoning import HARMONY as HARMONY_TAGS
from neuron.text.reasoning import MUSE as MUSE_TAGS
from neuron.text.reasoning import SOLAR_OPEN as SOLAR_TAGS
from neuron.text.reasoning import THINK, ReasoningSplitter, think_tags
from neuron.text.tags import TOKEN

TOOLS = [Tool.function(name) for name in ("get_weather", "ping")]
CALL = ("get_weather", '{"city": "Oslo"}')
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
CALLED = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
FINAL = "<|channel|>final<|message|>It is warm."
TEMPLATE = "<|start|>assistant<|channel|>analysis<|message|>{{ thought }}<|end|> <|call|>"


def answer(name, chunks, *, cut=False, tools=TOOLS, tokens=(), **limits):
    """The parts of a whole answer, joined."""
    framed = {"harmony": HARMONY_TAGS, "muse": MUSE_TAGS, "solar_open": SOLAR_TAGS}
    tags = framed.get(name, THINK).spelled(tokens)
    tools_parser = BY_NAME[name].parser(tools, tokens=tokens, **limits)
    parser = AnswerParser(ReasoningSplitter("possible", tags), tools_parser)
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)] + parser.finish(cut)
    joined = []
    for kind, piece in pieces:
        if kind == "tool" and piece.name is not None:
            joined.append((piece.name, piece.arguments))
        elif kind == "tool":
            joined[-1] = (joined[-1][0], joined[-1][1] + piece.arguments)
        elif joined and joined[-1][0] == f"{kind}:":
            joined[-1] = (f"{kind}:", joined[-1][1] + piece)
        else:
            joined.append((f"{kind}:", piece))
    return joined


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        (THOUGHT + FINAL, [("reasoning:", "Let me see."), ("text:", "It is warm.")]),
        (FINAL, [("text:", "It is warm.")]),
        (FINAL + "<|return|>", [("text:", "It is warm.")]),
        (THOUGHT + CALLED, [("reasoning:", "Let me see."), CALL]),
        (CALLED.removesuffix("<|call|>"), [CALL]),
        (
            f"{THOUGHT}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{CALLED}",
            [("reasoning:", "Let me see."), ("text:", "I look."), CALL],
        ),
        (
            f"<|channel|>commentary<|message|>First.<|end|><|start|>assistant{THOUGHT}{FINAL}",
            [("text:", "First."), ("reasoning:", "Let me see."), ("text:", "It is warm.")],
        ),
        (
            '<|start|>assistant to=get_weather<|channel|>commentary json<|message|>{"city": "Oslo"}',
            [CALL],
        ),
        ("<|channel|>commentary to=functions.ping<|message|><|call|>", [("ping", "{}")]),
        ("It is warm.", [("text:", "It is warm.")]),
    ],
)
def test_messages_of_harmony_are_told_apart_by_their_channels(said, parts):
    assert answer("harmony", [said]) == parts
    assert answer("harmony", said) == parts
    tokens = HARMONY.markers
    spelled = said
    for token in tokens:
        spelled = spelled.replace(token, TOKEN + token)
    assert answer("harmony", spelled, tokens=tokens) == parts


def test_an_answer_of_harmony_without_tools_is_its_text_and_its_thought():
    parts = [("reasoning:", "Let me see."), ("text:", "It is warm.")]
    assert answer("harmony", [THOUGHT + FINAL], tools=[]) == parts


def test_a_message_of_harmony_to_nobody_who_was_offered_is_text():
    said = "<|channel|>analysis to=browser.search code<|message|>{}<|call|>"
    assert [kind for kind, _ in answer("harmony", [said])] == ["text:"]


def test_of_a_call_of_harmony_that_was_cut_is_told_what_there_is():
    assert answer("harmony", [CALLED[:-17]], cut=True) == [("get_weather", '{"city"')]
    assert answer("harmony", [CALLED[:40]], cut=True) == []


def test_harmony_and_its_thoughts_are_known_by_the_template():
    assert tool_format([TEMPLATE]) is HARMONY
    assert think_tags([TEMPLATE]) == HARMONY_TAGS
    assert think_tags(["<|end|>"], ["<|end|>"]) is None
    prompt = HARMONY_TAGS.without_thought("<|start|>assistant")
    assert prompt.endswith("<|end|><|start|>assistant")


def test_functionary_speaks_to_somebody():
    said = 'all\nLet me see.>>>get_weather\n{"city": "Oslo"}>>>ping\n{}'
    parts = [("text:", "Let me see."), CALL, ("ping", "{}")]
    assert answer("functionary", [said]) == answer("functionary", said) == parts
    assert answer("functionary", ['get_weather\n{"city": "Oslo"}']) == [CALL]
    assert answer("functionary", ["all\nYes."], tools=[]) == [("text:", "Yes.")]


@pytest.mark.parametrize(
    "said", ["python\nprint(1)", "get_weather\nis a tool", "allow\nme", ">>> print(1)\n1"]
)
def test_what_functionary_says_otherwise_is_text(said):
    assert answer("functionary", [said]) == [("text:", said)]


def test_messages_of_gigachat_are_calls_by_their_role():
    call = json.dumps({"name": "get_weather", "arguments": {"city": "Oslo"}})
    said = f"I look.<|message_sep|>\n\nfunction call<|role_sep|>\n{call}<|message_sep|>"
    assert answer("gigachat", [said]) == [("text:", "I look."), CALL]
    assert answer("gigachat", [f"function call<|role_sep|>\n{call}"]) == [CALL]
    assert answer("gigachat", ["It is warm.<|message_sep|>"]) == [("text:", "It is warm.")]


MUSE_CALL = (
    '<atem:function_calls>\n<atem:invoke name="get_weather">\n'
    '<atem:parameter name="city">Oslo</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        (" to=user<|message|>It is warm.<|eot|>", [("text:", "It is warm.")]),
        (f" to=get_weather<|message|>{MUSE_CALL}<|eot|>", [CALL]),
        (
            f" to=self<|message|>Let me see.<|eom|><|start|>assistant to=get_weather<|message|>{MUSE_CALL}",
            [("reasoning:", "Let me see."), CALL],
        ),
        (
            " to=user<|message|>First.<|eom|><|start|>assistant to=self<|message|>Let me see.<|eom|>",
            [("text:", "First."), ("reasoning:", "Let me see.")],
        ),
        ("to=day", [("text:", "to=day")]),
    ],
)
def test_messages_of_muse_are_told_apart_by_whom_they_are_for(said, parts):
    assert answer("muse", [said]) == answer("muse", said) == parts
    assert answer("muse", [said], first=True) == parts or parts[0][0] == "text:"


SOLAR_THOUGHT = "<|think|>Let me see.<|end|><|begin|>assistant"
SOLAR_CALL = (
    '<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather<|tool_call:args|>{"city": "Oslo"}'
    "<|tool_call:end|>"
)


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        (
            f"{SOLAR_THOUGHT}<|content|>It is warm.<|flush|>",
            [("reasoning:", "Let me see."), ("text:", "It is warm.")],
        ),
        ("<|content|>It is warm.", [("text:", "It is warm.")]),
        (f"{SOLAR_THOUGHT}<|tool_calls|>{SOLAR_CALL}<|calls|>", [("reasoning:", "Let me see."), CALL]),
        (f"<|tool_calls|>{SOLAR_CALL}{SOLAR_CALL}", [CALL, CALL]),
        (
            f"<|content|>I look.<|end|><|begin|>assistant<|tool_calls|>{SOLAR_CALL}",
            [("text:", "I look."), CALL],
        ),
        (
            f"<|content|>First.<|end|><|begin|>assistant{SOLAR_THOUGHT}<|content|>It is warm.",
            [("text:", "First."), ("reasoning:", "Let me see."), ("text:", "It is warm.")],
        ),
    ],
)
def test_messages_of_solar_open_are_told_apart_by_what_they_begin_with(said, parts):
    tokens, spelled = SOLAR_OPEN.markers, said.replace("<|", f"{TOKEN}<|")
    assert answer("solar_open", [said]) == answer("solar_open", said) == parts
    assert answer("solar_open", spelled, tokens=tokens) == parts
    if all(kind.endswith(":") for kind, _ in parts):
        assert answer("solar_open", said, tools=[]) == parts


def test_solar_open_and_its_thoughts_are_known_by_the_template():
    template = "<|begin|>assistant<|think|><|end|> <|tool_call:begin|>{{ id }}<|tool_call:args|>"
    assert tool_format([template]) is SOLAR_OPEN
    assert think_tags([template]) == SOLAR_TAGS
    assert think_tags(["<|think|>{{ system }}", "<|end|>"]) is None
    prompt = SOLAR_TAGS.without_thought("<|begin|>assistant")
    assert SOLAR_TAGS.state(prompt) == "none"
