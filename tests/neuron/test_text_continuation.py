"""The last turn of a conversation is gone on with."""

from __future__ import annotations

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.conversation import ImagePart, Message, TextPart, ThinkingPart, ToolCall
from ipc.messages.requests import Generate
from neuron.preparation.prompt import encode_prompts, validate
from neuron.text.template import ChatTemplate
from tests.neuron.doubles import FrontEnd

HELLO = Message(role="user", content="Hello")
SOURCE = """{% for m in messages %}<{{ m.role }}>
{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content | trim }}</{{ m.role }}>
{% endfor %}{% if add_generation_prompt %}<assistant>
{% endif %}"""


class Letters(FrontEnd):
    """A text front end whose tokens are characters."""

    def __init__(self, source: str) -> None:
        super().__init__(1 << 10, {"default": ChatTemplate.of(source, {})})

    def encode(self, text: str, special: bool) -> list[int]:
        return [ord(char) for char in text]

    def fewest_tokens(self, characters: int) -> int:
        return 0


def prompt(last: Message, source: str = SOURCE) -> str:
    request = Generate(id=1, model="m", messages=[HELLO, last], continue_final_message=True)
    validate(request)
    [made] = encode_prompts(Letters(source), request)
    assert "".join(map(chr, made.ids)) == made.rendered
    return made.rendered


BEFORE = "<user>\nHello</user>\n<assistant>\n"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Message(role="assistant", content="Well, "), "Well, "),
        (Message(role="assistant", content=[TextPart(text="a"), TextPart(text="b")]), "a\nb"),
        (Message(role="assistant", content=[ThinkingPart(text="hm"), TextPart(text="b")]), "(hm)b"),
    ],
)
def test_the_prompt_ends_with_what_the_assistant_said(last: Message, said: str) -> None:
    assert prompt(last) == BEFORE + said


@pytest.mark.parametrize(
    "last",
    [
        HELLO,
        Message(role="assistant", content=""),
        Message(role="assistant", content=[ThinkingPart(text="hm")]),
        Message(role="assistant", content="a", tool_calls=[ToolCall(id="c", name="f", arguments="{}")]),
        Message(role="user", content=[ImagePart(data=b"x")]),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(last: Message) -> None:
    with pytest.raises(CortexError) as refused:
        prompt(last)
    assert (refused.value.code, refused.value.param) == (Code.BAD_REQUEST, "continue_final_message")


def test_a_template_that_leaves_the_turn_out_fails() -> None:
    with pytest.raises(CortexError) as refused:
        prompt(Message(role="assistant", content="a"), "{{ messages[0].content }}")
    assert (refused.value.code, refused.value.param) == (Code.TEMPLATE_FAILED, "messages")
