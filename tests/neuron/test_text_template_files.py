"""Templates of known models, where a folder of them is at hand, beside what transformers makes of them."""

import json
from functools import cache
from pathlib import Path

import pytest

from ipc.messages.conversation import Message, TextPart, Tool, ToolCall
from neuron.text.formats.registry import tool_format
from neuron.text.history import Takes
from neuron.text.template import ChatTemplate, message_for_template

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

FOLDERS = (parent / "shared" / "data" / "templates" for parent in Path(__file__).parents)
FILES = sorted(next((folder for folder in FOLDERS if folder.is_dir()), Path("none")).glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = [
    Tool.function(
        "get_weather",
        description="Weather of a place",
        parameters={
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town"},
                "days": {"type": "integer", "description": "How many"},
            },
            "required": ["place"],
        },
    ),
    Tool.function("now", description="The time", parameters={"type": "object", "properties": {}}),
]


def turn(role, content="", *calls, **more):
    tool_calls = [
        ToolCall(
            id=call_id,
            name=name,
            arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
        )
        for call_id, name, arguments in calls
    ]
    return Message(role=role, content=content, tool_calls=tool_calls, **more)


def result(content, call_id="abcdefgh0", name="get_weather"):
    return turn("tool", content, tool_call_id=call_id, name=name)


WEATHER = ("abcdefgh0", "get_weather", {"place": "Zürich", "days": 2})
NOW = ("abcdefgh1", "now", {})
ASKED = turn("user", "What is it like in Zürich?")
SYSTEM = turn("system", "Be brief.")

WELL_FORMED = {
    "one turn": [ASKED],
    "a system turn": [SYSTEM, ASKED],
    "several turns": [SYSTEM, ASKED, turn("assistant", "Cold. "), turn("user", " And <b>'now'</b>?\n")],
    "a thought in a turn before": [
        ASKED,
        turn("assistant", "Cold.", reasoning="It is winter."),
        turn("user", "Sure?"),
    ],
    "a call": [ASKED, turn("assistant", "", WEATHER), result("2 degrees")],
    "a call behind a thought": [
        ASKED,
        turn("assistant", "", WEATHER, reasoning="I look."),
        result('{"degrees": 2}'),
    ],
    "a call behind words": [SYSTEM, ASKED, turn("assistant", "I look.", WEATHER), result("2")],
    "a call that was spoken of": [
        ASKED,
        turn("assistant", "", WEATHER),
        result("2 degrees"),
        turn("assistant", "Cold."),
        turn("user", "Thanks"),
    ],
    "two calls": [
        ASKED,
        turn("assistant", "", WEATHER, NOW),
        result("2"),
        result("noon", "abcdefgh1", "now"),
    ],
    "arguments of every kind": [
        ASKED,
        turn("assistant", "", ("abcdefgh0", "now", {"a": [1, {"b": None}], "c": True, "d": 1.5, "e": "<é>"})),
        result("2", name="now"),
    ],
    "empty turns": [turn("user"), turn("assistant"), ASKED],
}


@cache
def template_in(file):
    source = file.read_text()
    return ChatTemplate.of(source, SPECIAL, tool_format=tool_format([source]))


def rendered_by_transformers(source, turns, tools):
    prompts, _ = chat_template_utils.render_jinja_template(
        [turns],
        tools=[tool.definition for tool in tools] or None,
        chat_template=source,
        add_generation_prompt=True,
        **SPECIAL,
    )
    return prompts[0]


@pytest.mark.parametrize("shape", WELL_FORMED)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_prompt_is_to_the_byte_what_transformers_makes(file, shape):
    source, messages = file.read_text(), WELL_FORMED[shape]
    ours = template_in(file)
    turns = [message_for_template(message, message.role) for message in messages]
    if shape == "two calls" and file.stem in ONE_CALL:
        first, second = ({**turns[1], "tool_calls": [call]} for call in turns[1]["tool_calls"])
        turns = [turns[0], first, turns[2], second, turns[3]]
    if not ours.tried.takes.calls:
        turns = [*with_calls_in_words(turns, ours.tried.takes, tool_format([source]))]
    for tools in ([], TOOLS[:1], TOOLS):
        try:
            expected = rendered_by_transformers(source, turns, tools)
        except Exception:
            if tools and not refused_by_itself(source, tools):
                assert ours.render(messages, tools, {})  # what it refuses for its shape is made to fit
            continue
        assert ours.render(messages, tools, {}) == expected


# They show the model one call of a turn; no call; no call and no result.
ONE_CALL = {"GigaChat3-10B-A1.8B"}
WITHOUT_CALLS = {"HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct"}
WITHOUT_RESULTS = {"google-gemma-2-2b-it", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_template_is_found_out_that_leaves_calls_or_results_out(file):
    takes = template_in(file).tried.takes
    assert takes.calls == (file.stem not in WITHOUT_CALLS | WITHOUT_RESULTS)
    assert takes.calls or takes.orphans == (file.stem in WITHOUT_CALLS)
    assert file.stem not in ONE_CALL or not takes.several_calls


def with_calls_in_words(turns, takes: Takes, calls_as):
    """A conversation in which the assistant wrote its calls itself."""
    for turn in turns:
        if turn.get("tool_calls"):
            functions = [call["function"] for call in turn.pop("tool_calls")]
            text = calls_as.as_text([(each["name"], each["arguments"]) for each in functions])
            turn["content"] = "\n\n".join(filter(None, (turn["content"], text)))
        elif turn["role"] == "tool" and not takes.orphans:
            turn |= {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
        yield turn


def refused_by_itself(source, tools):
    try:
        return not rendered_by_transformers(source, [{"role": "user", "content": "a"}], tools)
    except Exception:
        return True


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parts_are_handed_over_as_they_are_where_a_template_reads_them(file):
    source, ours = file.read_text(), template_in(file)
    parts = [TextPart(text="one"), TextPart(text="two")]
    plain = [{"type": "text", "text": part.text} for part in parts]
    prompt = ours.render([turn("user", parts)], TOOLS, {})
    if ours.tried.forms["user"][1]:
        assert prompt == rendered_by_transformers(source, [{"role": "user", "content": plain}], TOOLS)
    else:
        assert prompt == ours.render([turn("user", "one\ntwo")], TOOLS, {})


LONG = "call_0123456789abcdef01234567"
ODD = {
    "arguments that are no JSON": [
        ASKED,
        turn("assistant", "", ("abcdefgh0", "now", "xyz")),
        result("qresult", name="now"),
        turn("user", "qlast"),
    ],
    "arguments that were cut": [
        ASKED,
        turn("assistant", "", ("abcdefgh0", "get_weather", '{"place": "Zür')),
        result("qresult"),
        turn("user", "qlast"),
    ],
    "long ids": [
        ASKED,
        turn("assistant", "", (LONG, "get_weather", {"place": "Bern"})),
        result("qresult", LONG),
    ],
    "a system turn in the middle": [
        SYSTEM,
        ASKED,
        turn("assistant", "qcold"),
        turn("system", "qmiddle"),
        ASKED,
    ],
    "a system turn at the end": [ASKED, turn("assistant", "qcold"), ASKED, turn("system", "qend")],
    "a system turn behind a result": [
        ASKED,
        turn("assistant", "", WEATHER),
        result("qresult"),
        turn("system", "qend"),
    ],
    "a system turn before a result": [
        ASKED,
        turn("assistant", "", WEATHER),
        turn("system", "qmiddle"),
        result("qresult"),
    ],
    "two system turns": [turn("system", "qfirst"), turn("system", "qsecond"), ASKED],
    "a developer in the middle": [ASKED, turn("assistant", "qcold"), turn("developer", "qmiddle"), ASKED],
    "only a system turn": [turn("system", "qfirst")],
    "two of the user": [turn("user", "qfirst"), turn("user", "qsecond"), turn("assistant", "qcold"), ASKED],
    "two of the assistant": [ASKED, turn("assistant", "qfirst"), turn("assistant", "qsecond"), ASKED],
    "the assistant first": [turn("assistant", "qfirst"), ASKED],
    "no user": [SYSTEM, turn("assistant", "", WEATHER), result("qresult")],
    "a result of no call": [ASKED, result("qresult"), turn("assistant", "qcold"), ASKED],
    "a result at first": [result("qresult"), ASKED],
    "a result before its call": [ASKED, result("qresult"), turn("assistant", "", WEATHER), ASKED],
    "a call without a result": [ASKED, turn("assistant", "", WEATHER), turn("user", "qlast")],
    "one result of two": [
        ASKED,
        turn("assistant", "", WEATHER, NOW),
        result("qresult"),
        turn("user", "qlast"),
    ],
    "a user behind a result": [
        ASKED,
        turn("assistant", "", WEATHER),
        result("qresult"),
        turn("user", "qlast"),
    ],
    "a result without an id": [ASKED, turn("assistant", "", WEATHER), turn("tool", "qresult")],
}


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_conversation_of_any_shape_is_told_to_every_model(file, shape):
    ours = template_in(file)
    for tools in [TOOLS] if "tool_use" in file.name else [[], TOOLS]:
        prompt = ours.render(ODD[shape], tools, {})
        for message in ODD[shape]:
            if message.content.startswith("q"):
                assert message.content in prompt
            assert all(call.name in prompt for call in message.tool_calls or ())
