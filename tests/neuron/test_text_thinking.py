from pathlib import Path

import pytest

from ipc.messages.conversation import Message
from ipc.messages.sampling import Thinking
from neuron.text.reasoning import think_tags
from neuron.text.sandbox import parse
from neuron.text.template import ChatTemplate
from neuron.text.thinking import ThinkingVariables, is_off

SWITCH = "{{ enable_thinking }}"
FREE = "Reasoning: {{ reasoning_effort }}"
LISTED = "{% if reasoning_effort not in ['high', 'low', 'no_think'] %}{{ raise_exception('no') }}{% endif %}"
COMPARED = "{% if reasoning_effort == 'max' %}Think.{% endif %}"
MODE = "{% if thinking_mode == 'enabled' %}a{% elif thinking_mode == 'disabled' %}b{% endif %}"
BUDGET = "{{ thinking_budget }}"

ON, OFF = Thinking(enabled=True), Thinking(enabled=False)


def effort(word):
    return Thinking(effort=word)


@pytest.mark.parametrize(
    ("source", "thinking", "values"),
    [
        (SWITCH, Thinking(), {}),
        (SWITCH, ON, {"enable_thinking": True}),
        (SWITCH, OFF, {"enable_thinking": False}),
        (SWITCH, effort("none"), {"enable_thinking": False}),
        (SWITCH, effort("low"), {"enable_thinking": True}),
        (SWITCH, Thinking(budget=0), {"enable_thinking": False}),
        (SWITCH, Thinking(budget=9), {}),
        ("{{ thinking }}", OFF, {"thinking": False}),
        ("{{ nothing }}", OFF, {}),
        ("{% set enable_thinking = true %}{{ enable_thinking }}", OFF, {}),
        (FREE, effort("minimal"), {"reasoning_effort": "low"}),
        (FREE, effort("medium"), {"reasoning_effort": "medium"}),
        (FREE, effort("xhigh"), {"reasoning_effort": "high"}),
        (FREE, effort("ultra"), {"reasoning_effort": "ultra"}),
        (FREE, OFF, {}),
        (LISTED, effort("minimal"), {"reasoning_effort": "low"}),
        (LISTED, effort("medium"), {"reasoning_effort": "high"}),
        (LISTED, effort("max"), {"reasoning_effort": "high"}),
        (LISTED, effort("none"), {"reasoning_effort": "no_think"}),
        (LISTED, ON, {"reasoning_effort": "high"}),
        (COMPARED, effort("low"), {"reasoning_effort": "low"}),
        (COMPARED, effort("xhigh"), {"reasoning_effort": "max"}),
        (MODE, ON, {"thinking_mode": "enabled"}),
        (MODE, OFF, {"thinking_mode": "disabled"}),
        (BUDGET, Thinking(budget=512), {"thinking_budget": 512}),
        (BUDGET, OFF, {"thinking_budget": 0}),
        (BUDGET, ON, {}),
    ],
)
def test_a_template_is_told_in_the_variables_that_it_reads(source, thinking, values):
    assert ThinkingVariables.of(parse(source)).values(thinking) == values


def test_a_switch_says_more_than_an_effort():
    assert is_off(Thinking(enabled=False, effort="high"))
    assert not is_off(Thinking(enabled=True, budget=0))


FOLDERS = (parent / "shared" / "data" / "templates" for parent in Path(__file__).parents)
FILES = sorted(next((folder for folder in FOLDERS if folder.is_dir()), Path("none")).glob("*.jinja"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_known_template_never_opens_a_thought_that_nobody_wants(file):
    template = ChatTemplate.of(file.read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    tags = think_tags(template.texts)
    if tags is None or "tool_use" in file.name:
        return
    hello = [Message(role="user", content="Hello")]
    for thinking in (OFF, effort("none")):
        values = template.thinking_values(thinking)
        assert tags.state(tags.without_thought(template.render(hello, [], values))) == "none"
        if values:
            assert tags.state(template.render(hello, [], values)) != "open"
    template.render(hello, [], template.thinking_values(ON))
    for word in ("minimal", "low", "medium", "high", "xhigh", "max"):
        template.render(hello, [], template.thinking_values(effort(word)))
