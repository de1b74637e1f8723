import re
from types import SimpleNamespace

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, TextPart, Tool, ToolCall
from ipc.messages.requests import MAX_WRITTEN, CountTokens, Generate
from ipc.messages.sampling import Sampling
from neuron.preparation.prompt import (
    encode_prompts,
    is_quick,
    to_ids,
    validate,
    validate_prompt,
)
from neuron.preparation.sampling import check_ids
from neuron.text import content
from tests.neuron.doubles import FrontEnd

HELLO = [Message(role="user", content="hello")]


def request(**changes):
    return Generate(id=1, model="m", **({"messages": HELLO} | changes))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": None}, "messages"),
        ({"prompt": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": None, "prompt": ""}, "prompt"),
        ({"messages": None, "prompt": []}, "prompt"),
        ({"messages": None, "prompt": ["a", ""]}, "prompt[1]"),
        ({"messages": None, "prompt": [[1], []]}, "prompt[1]"),
        ({"messages": None, "prompt": [1, "a"]}, "prompt"),
        ({"messages": None, "prompt": ["a", 1]}, "prompt"),
        ({"messages": None, "prompt": ["a"] * 129}, "prompt"),
        ({"messages": None, "prompt": ["a"] * 3, "sampling": Sampling(n=43)}, "prompt"),
        ({"messages": None, "prompt": "hello", "tools": [Tool.function(name="t")]}, "tools"),
        ({"suffix": "after"}, "suffix"),
        ({"messages": None, "prompt": [], "suffix": "after"}, "prompt"),
        ({"must_call": ["t"]}, "must_call"),
        ({"must_call": ["u"], "tools": [Tool.function(name="t")]}, "must_call"),
        ({"tools": [Tool.function(name="t"), Tool(definition={"function": {}})]}, "tools[1]"),
        ({"tools": [Tool.function(name="t", parameters=[])]}, "tools[0]"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature"),
        ({"sampling": Sampling(temperature=2.1)}, "temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        ({"sampling": Sampling(top_p=1.1)}, "top_p"),
        ({"sampling": Sampling(top_k=-1)}, "top_k"),
        ({"sampling": Sampling(max_tokens=-1)}, "max_tokens"),
        ({"messages": None, "prompt": "a", "sampling": Sampling(max_tokens=0)}, "max_tokens"),
        ({"sampling": Sampling(stop=["x"] * 17)}, "stop"),
        ({"sampling": Sampling(stop_token_ids=[1] * 1025)}, "stop_token_ids"),
        ({"sampling": Sampling(allowed_token_ids=[1] * 8193)}, "allowed_token_ids"),
        ({"sampling": Sampling(stop=["x", ""])}, "stop"),
    ],
)
def test_each_bad_field_is_named(changes, param):
    with pytest.raises(CortexError) as refused:
        validate(request(**changes))
    assert refused.value.code == Code.BAD_REQUEST
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("ids", "named"),
    [([1, 64, 3], "token id 64 is"), ([64, -1, 0], "token ids 64, -1 are"), ([99] * 9, ", 99, ... are")],
)
def test_all_ids_that_are_no_tokens_are_named(ids, named):
    with pytest.raises(CortexError, match=re.escape(f"{named} not between 0 and 63")) as refused:
        check_ids(ids, SimpleNamespace(vocabulary_size=64), "stop_token_ids")
    assert refused.value.param == "stop_token_ids"


def test_all_biases_out_of_range_are_named():
    biased = Sampling(logit_bias={1: 100, 2: 101, 3: float("nan")})
    with pytest.raises(CortexError, match="the bias of token ids 2, 3 are not between -100 and 100"):
        validate(request(sampling=biased))


def test_the_ends_of_each_range_are_allowed():
    validate(request())
    validate(request(sampling=Sampling(max_tokens=0)))  # the messages alone are of interest
    validate(request(sampling=Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1, stop=["x"] * 16)))
    validate(request(sampling=Sampling(temperature=2.0, top_p=0.01)))
    validate(Generate(id=1, model="m", prompt=[0]))
    validate(Generate(id=1, model="m", prompt="", suffix="after"))
    validate(Generate(id=1, model="m", prompt=["a"] * 64, sampling=Sampling(n=2)))
    validate(Generate(id=1, model="m", prompt=["a", [0]]))


def test_what_was_written_elsewhere_has_a_bound_in_all():
    validate(request(written=[[1] * (MAX_WRITTEN // 2)] * 2))
    with pytest.raises(CortexError, match=f"written has {MAX_WRITTEN + 2} tokens"):
        validate(request(written=[[1] * (MAX_WRITTEN // 2 + 1)] * 2))


def test_too_many_choices_are_refused_with_the_limit():
    with pytest.raises(CortexError, match="3 prompts times n, which is 43, are more than 128 choices"):
        validate(Generate(id=1, model="m", prompt=["a"] * 3, sampling=Sampling(n=43)))


@pytest.mark.parametrize(
    ("changes", "quick"),
    [
        ({"prompt": ["a" * 1000] * 2}, True),
        ({"prompt": ["a" * 1000] * 3}, False),
        ({"prompt": [[1] * 500, [2] * 500], "sampling": Sampling(n=3)}, False),
        ({"prompt": [1] * 2000}, True),
    ],
)
def test_what_is_quick_depends_on_all_prompts_and_choices(changes, quick):
    assert is_quick(Generate(id=1, model="m", **changes)) is quick


TURNS = [Message(role="user")] * 50


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": TURNS},
        {"messages": [Message(role="user", content=[TextPart(text="")] * 50)]},
        {"messages": [Message(role="assistant", tool_calls=[ToolCall(id="", name="f", arguments="")] * 50)]},
        {"tools": [Tool.function(name="f")] * 50},
        {"messages": [Message(role="assistant", reasoning="a" * 3000)]},
        {
            "messages": [
                Message(role="assistant", tool_calls=[ToolCall(id="", name="f", arguments="a" * 3000)])
            ]
        },
        {"tools": [Tool.function(name="f", description="a" * 3000)]},
        {"tools": [Tool.function(name="f", parameters={"enum": ["a"] * 3000})]},
        {"tools": [Tool.function(name="f", parameters={"a": {"b": ["a" * 3000]}})]},
        {"template_args": {"a": dict.fromkeys(range(3000), 0)}},
    ],
)
def test_what_is_quick_depends_on_everything_that_a_template_sees(changes):
    assert is_quick(request())
    assert is_quick(request(messages=HELLO * 20, template_args={"enable_thinking": True}))
    assert not is_quick(request(**changes))


def test_no_more_is_looked_at_than_shows_that_a_request_is_not_quick(monkeypatch):
    looked, plain = [], content.images
    monkeypatch.setattr(content, "images", lambda messages: looked.append(messages) or plain(messages))
    assert not is_quick(request(messages=[Message(role="user", content=[TextPart(text="")])] * 5000))
    assert len(looked) < 100


def test_counting_takes_the_same_prompts():
    validate_prompt(CountTokens(id=1, model="m", prompt="hello"))
    with pytest.raises(CortexError):
        validate_prompt(CountTokens(id=1, model="m"))


class Letters(FrontEnd):
    """A front end with a token for each four letters, and one that is long."""

    def __init__(self):
        super().__init__(1000)
        self.read = 0  # characters

    def fewest_tokens(self, characters):
        return characters // 100

    def encode(self, text, special):
        self.read += len(text)
        return [1] * len(text.replace("=" * 100, "====")[::4])


def test_a_text_that_is_too_long_is_known_by_its_beginning():
    text = Letters()
    with pytest.raises(CortexError) as refused:
        to_ids(text, "word" * 2000, "prompt", 100)
    assert refused.value.code == Code.CONTEXT_LENGTH_EXCEEDED
    assert text.read == 800


def test_a_text_whose_beginning_has_few_tokens_is_read_as_far_as_it_may_fit():
    text = Letters()
    with pytest.raises(CortexError):
        to_ids(text, "=" * 2000 + "word" * 1900, "prompt", 100)
    assert text.read == 3200


def test_a_text_of_several_contexts_is_counted():
    count = CountTokens(id=1, model="m", prompt="word" * 400)
    [prompt] = encode_prompts(Letters(), count, 100)
    assert len(prompt.ids) == 400
    with pytest.raises(CortexError) as refused:
        encode_prompts(Letters(), Generate(id=1, model="m", prompt=count.prompt * 2), 100)
    assert refused.value.code == Code.CONTEXT_LENGTH_EXCEEDED


def test_a_text_that_is_far_too_long_to_be_counted_is_refused_by_its_beginning():
    text = Letters()
    with pytest.raises(CortexError) as refused:
        encode_prompts(text, CountTokens(id=1, model="m", prompt="word" * 9000), 100)
    assert refused.value.code == Code.CONTEXT_LENGTH_EXCEEDED
    assert refused.value.details == {"prompt_tokens": 600, "context_length": 100}
    assert text.read == 2400


def test_a_text_of_many_characters_and_few_tokens_is_read():
    assert len(to_ids(Letters(), "=" * 9000, "prompt", 100)) == 90
    assert len(to_ids(Letters(), "word" * 99, "prompt", 100)) == 99


class Refusing(Letters):
    """The same, with a template that refuses."""

    def render(self, *given, **more):
        raise CortexError(
            Code.TEMPLATE_FAILED, "the chat template refuses these messages: no", param="messages"
        )


def test_a_template_that_fails_is_told_with_its_model():
    with pytest.raises(CortexError, match="m: the chat template refuses these messages: no") as refused:
        encode_prompts(Refusing(), request())
    assert (refused.value.code, refused.value.param) == (Code.TEMPLATE_FAILED, "messages")
