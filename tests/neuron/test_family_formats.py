"""What models of a family write is read by what their chat templates say, in templates of the same shape."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from ipc.messages.conversation import Message, Tool, ToolCall
from neuron.text.formats.registry import tool_format
from neuron.text.parser import AnswerParser
from neuron.text.reasoning import ReasoningSplitter, think_tags
from neuron.text.template import ChatTemplate

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [Tool.function(name, description="It tells.", parameters=CITY) for name in ("weather", "time")]
CALLS = [("weather", {"city": "Oslo"}), ("time", {"city": "Rome"})]


class Family(NamedTuple):
    """What a template says, and an answer with a thought, a word and two calls."""

    calls_as: str
    template: str
    answer: str
    thinks: bool = True


def turns(
    said: str, called: str, end: str = "<|im_end|>", begin: str = "<|im_start|>", after: str = ""
) -> str:
    """A template: each turn with its role, calls as `called` writes them, and a result."""
    return (
        "{%- if tools %}{{ tools | tojson }}" + said + "{% endif %}"
        "{%- for turn in messages %}" + begin + "{{ turn.role }}\n"
        "{%- if turn.content is string %}{{ turn.content }}{% endif %}"
        "{%- if turn.tool_calls %}" + called + "{% endif %}" + end + "{% endfor %}"
        "{%- if add_generation_prompt %}" + begin + "assistant\n" + after + "{% endif %}"
    )


def each(written: str, between: str = "") -> str:
    """`written` for each call, as `call`."""
    last = "{% if not loop.last %}" + between + "{% endif %}" if between else ""
    return "{% for one in turn.tool_calls %}{% set call = one.function %}" + written + last + "{% endfor %}"


OBJECT = '{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}'
XML = (
    "<tool_call>\n<function={{ call.name }}>\n{% for key, value in call.arguments.items() %}"
    "<parameter={{ key }}>\n{{ value }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
HERMES = "<tool_call>\n" + OBJECT + "\n</tool_call>"
OBJECTS = [json.dumps({"name": name, "arguments": given}) for name, given in CALLS]
TAGGED = "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in OBJECTS)
COHERE = [
    json.dumps({"tool_call_id": str(n), "tool_name": name, "parameters": given})
    for n, (name, given) in enumerate(CALLS)
]
ACTION = (
    "<|START_ACTION|>["
    + each(
        '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call.name }}", '
        '"parameters": {{ call.arguments | tojson }}}',
        ", ",
    )
    + "]<|END_ACTION|>"
)
THINKS = "{% if false %}<think></think>{% endif %}"

FAMILIES = {
    "trinity": Family(
        "hermes",
        turns("Call with <tool_call>{...}</tool_call>.", each(HERMES), after="<think>\n") + THINKS,
        f"hm</think>\nWait.\n{TAGGED}",
    ),
    "mimo": Family(
        "hermes",
        turns("Call with <tool_call>{...}</tool_call>.", each(HERMES)) + THINKS,
        f"<think>\nhm\n</think>\nWait.\n{TAGGED}",
    ),
    "falcon_h1": Family(
        "falcon_h1",
        turns(
            "Call with\n<tool_call>\n[\n{...},\n{...}\n]\n</tool_call>.",
            "<tool_call>\n{{ turn.tool_calls | tojson(indent=2) }}\n</tool_call>",
        ),
        f"Wait.\n<tool_call>\n[\n{OBJECTS[0]},\n{OBJECTS[1]}\n]\n</tool_call>",
        thinks=False,
    ),
    "nemotron_nano_2": Family(
        "nemotron",
        turns(
            "Call with <TOOLCALL>[{...}]</TOOLCALL>.",
            "<TOOLCALL>[" + each(OBJECT, ", ") + "]</TOOLCALL>",
            end="\n<SPECIAL_12>\n",
            begin="<SPECIAL_11>",
            after="<think>\n\n",
        )
        + THINKS,
        f"hm\n</think>\n\nWait.\n\n<TOOLCALL>[{', '.join(OBJECTS)}]</TOOLCALL>",
    ),
    "nemotron_3_nano": Family(
        "qwen3_coder",
        turns(
            "Call with <tool_call><function=f><parameter=a>...</parameter></function></tool_call>.",
            each(XML),
            after="<think>\n",
        )
        + THINKS,
        "hm\n</think>\nWait.\n"
        + "\n".join(
            f"<tool_call>\n<function={name}>\n<parameter=city>\n{given['city']}\n</parameter>\n"
            "</function>\n</tool_call>"
            for name, given in CALLS
        ),
    ),
    "mistral_4": Family(
        "mistral_args",
        turns(
            "[AVAILABLE_TOOLS]",
            each("[TOOL_CALLS]{{ call.name }}[ARGS]{{ call.arguments | tojson }}"),
            end="</s>",
            begin="[INST]",
        )
        + "{% if false %}[THINK][/THINK]{% endif %}",
        "[THINK]hm[/THINK]Wait."
        + "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in CALLS),
    ),
    "north": Family(
        "command_a",
        turns(
            "Act.",
            ACTION,
            end="<|END_TEXT|><|END_OF_TURN_TOKEN|>",
            begin="<|START_OF_TURN_TOKEN|><|START_TEXT|>",
            after="<|START_THINKING|>",
        )
        + "{% if false %}<|END_THINKING|>{% endif %}",
        f"hm<|END_THINKING|><|START_ACTION|>[{', '.join(COHERE)}]<|END_ACTION|>",
    ),
    "olmo_3": Family(
        "olmo3",
        turns(
            "Call functions.",
            "<function_calls>"
            + each(
                "{{ call.name }}({% for key, value in call.arguments.items() %}"
                "{{ key }}={{ value | tojson }}{% endfor %})",
                "\n",
            )
            + "</function_calls>",
        )
        + THINKS,
        '<think>hm</think>Wait.<function_calls>weather(city="Oslo")\ntime(city="Rome")</function_calls>',
    ),
    "ernie": Family(
        "hermes",
        turns("Call with <tool_call>{...}</tool_call>.", each(HERMES), after="<think>\n")
        + "{% if false %}</think><response></response>{% endif %}",
        f"hm\n</think>\n\n{TAGGED}",
    ),
}
EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def template_of(family: Family) -> ChatTemplate:
    return ChatTemplate.of(family.template, {}, tool_format=tool_format([family.template]))


def parts(family: Family, prompt: str, text: str) -> tuple[str, str, list[tuple[str, dict[str, str]]]]:
    """What is read of an answer: its thought, its words and its calls."""
    calls_as = tool_format([family.template])
    tags = think_tags([family.template])
    thought = None if tags is None else ReasoningSplitter(tags.state(prompt), tags)
    parser = AnswerParser(thought, calls_as.parser(TOOLS))
    pieces = [piece for letter in text for piece in parser.push(letter)] + parser.finish()
    reasoning = "".join(said for kind, said in pieces if kind == "reasoning")
    words = "".join(said for kind, said in pieces if kind == "text")
    calls = [(call.name, json.loads(call.arguments)) for call in parser.tool_calls]
    return reasoning, words, calls


@EACH
def test_an_answer_is_told_apart_by_what_the_template_says(family):
    assert tool_format([family.template]).name == family.calls_as
    prompt = template_of(family).render([Message(role="user", content="Where?")], TOOLS, {})
    reasoning, words, calls = parts(family, prompt, family.answer)
    assert reasoning.strip() == ("hm" if family.thinks else "")
    assert words.strip() == ("Wait." if "Wait." in family.answer else "")
    assert calls == CALLS


@EACH
def test_calls_that_the_template_shows_again_are_read_as_they_were(family):
    made = [
        ToolCall(id=f"call{number:05}", name=name, arguments=json.dumps(given))
        for number, (name, given) in enumerate(CALLS)
    ]
    asked = [Message(role="user", content="Where?")]
    answered = [*asked, Message(role="assistant", content="", tool_calls=made)]
    template = template_of(family)
    shown = template.render(answered, [], {}).rpartition("assistant\n")[0].partition("Where?")[2]
    assert parts(family, "", shown)[2] == CALLS


@pytest.mark.parametrize("between", ["\n", ", ", "; ", ",\n"])
def test_calls_of_olmo_3_stand_on_lines_or_behind_commas(between):
    text = f'<function_calls>weather(city="Oslo"){between}time(city="Rome")</function_calls>Yes.'
    assert parts(FAMILIES["olmo_3"], "", text) == ("", "Yes.", CALLS)
