"""What can be asked of an answer besides its text, over HTTP and through every process."""

from __future__ import annotations

import json
import math

import httpx
import jsonschema
import openai
import pytest

from tests.end_to_end.harness import PATIENCE

HELLO = [{"role": "user", "content": "Hello!"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
FORM = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


@pytest.fixture
def http(cortex):
    with httpx.Client(base_url=cortex.base, timeout=PATIENCE) as client:
        yield client


def test_n_choices_are_n_single_answers_with_the_seeds_that_follow(sdk):
    def ask(seed, n=1):
        answer = sdk.chat.completions.create(
            model="demo", messages=HELLO, temperature=1.5, seed=seed, max_tokens=12, n=n
        )
        return [choice.message.content for choice in answer.choices]

    assert ask(5, n=3) == ask(5) + ask(6) + ask(7)


def test_streamed_choices_are_told_apart(sdk):
    settings = {"model": "demo", "messages": HELLO, "temperature": 1.5, "seed": 5, "max_tokens": 12, "n": 2}
    whole = sdk.chat.completions.create(**settings)
    texts, reasons = ["", ""], {}
    for chunk in sdk.chat.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_logprobs_name_every_token_and_what_else_it_might_have_been(sdk):
    answer = sdk.chat.completions.create(
        model="demo", messages=HELLO, temperature=0, logprobs=True, top_logprobs=3
    )
    [choice] = answer.choices
    tokens = choice.logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert bytes(b for token in tokens for b in token.bytes).decode().startswith(choice.message.content)
    for token in tokens:
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.001


def test_an_answer_follows_its_schema_streamed_or_not(sdk):
    for temperature in (0, 1.5):
        settings = {"model": "demo", "messages": HELLO, "temperature": temperature, "seed": 3}
        whole = sdk.chat.completions.create(**settings, response_format=FORM, max_tokens=100)
        jsonschema.validate(json.loads(whole.choices[0].message.content), SCHEMA)
        stream = sdk.chat.completions.create(**settings, response_format=FORM, max_tokens=100, stream=True)
        text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
        assert text == whole.choices[0].message.content


def test_a_choice_is_one_of_those(sdk):
    answer = sdk.chat.completions.create(
        model="demo",
        messages=HELLO,
        extra_body={"structured_outputs": {"choice": ["red", "green"]}},
    )
    assert answer.choices[0].message.content in ("red", "green")
    assert answer.choices[0].finish_reason == "stop"


def test_a_schema_that_is_none_is_refused_by_its_name(sdk):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="demo", messages=HELLO, response_format=form)
    assert refused.value.param == "response_format.json_schema.schema"


def test_a_prompt_is_scored_with_echo_and_no_tokens(sdk):
    answer = sdk.completions.create(model="demo", prompt="Hello there", echo=True, logprobs=2, max_tokens=0)
    [choice] = answer.choices
    told = choice.logprobs
    assert choice.text == "Hello there"
    assert len(told.tokens) == answer.usage.prompt_tokens
    assert told.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in told.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


PROMPTS = ["Hello there", "A neuron is"]


def by_choice(stream):
    """What a stream says, as the choices of an unstreamed answer: text, tokens, log-probabilities, reason."""
    said = {}
    for chunk in stream:
        for choice in chunk.choices:
            text, tokens, logprobs, _ = said.setdefault(choice.index, ("", [], [], None))
            told = choice.logprobs
            tokens += told.tokens if told is not None else []
            logprobs += told.token_logprobs if told is not None else []
            said[choice.index] = (text + choice.text, tokens, logprobs, choice.finish_reason)
    return [said[index] for index in range(len(said))]


def choices_of(answer):
    return [
        (each.text, each.logprobs.tokens, each.logprobs.token_logprobs, each.finish_reason)
        for each in answer.choices
    ]


def assert_same(answers, expected):
    """Same words; probabilities as close as they are in batches of any size."""
    for (text, tokens, logprobs, reason), other in zip(answers, expected, strict=True):
        assert (text, tokens, reason) == (other[0], other[1], other[3])
        assert [logprobs[0], other[2][0]] == [None, None]
        assert logprobs[1:] == pytest.approx(other[2][1:], abs=1e-3)


def test_prompts_together_are_answered_as_each_alone_streamed_or_not(sdk):
    settings = {"model": "demo", "temperature": 0, "max_tokens": 12, "echo": True, "logprobs": 2}
    alone = [sdk.completions.create(prompt=prompt, **settings) for prompt in PROMPTS]
    together = sdk.completions.create(prompt=PROMPTS, **settings)
    assert [choice.index for choice in together.choices] == [0, 1]
    assert_same(choices_of(together), [choice for answer in alone for choice in choices_of(answer)])
    for field in ("prompt_tokens", "completion_tokens"):
        assert getattr(together.usage, field) == sum(getattr(each.usage, field) for each in alone)
    stream = sdk.completions.create(prompt=PROMPTS, **settings, stream=True)
    assert_same(by_choice(stream), choices_of(together))


def test_every_prompt_draws_with_the_same_seeds_and_follows_the_same_form(sdk):
    settings = {"model": "demo", "temperature": 1.5, "seed": 5, "n": 2, "max_tokens": 40, "stop": ["."]}
    form = {"structured_outputs": {"regex": "[a-z]{3,9}[.][a-z]+"}}

    def ask(prompt):
        answer = sdk.completions.create(prompt=prompt, **settings, extra_body=form)
        return [choice.text for choice in answer.choices]

    together = ask(PROMPTS)
    assert together == ask(PROMPTS[0]) + ask(PROMPTS[1])
    assert all(text.isalpha() and 3 <= len(text) <= 9 for text in together)


def test_the_prompt_at_fault_is_named(sdk, cortex):
    long = "word " * 2 * cortex.model("demo").context_length
    for prompt, param in (([], "prompt"), (["a", ""], "prompt[1]"), (["a", long], "prompt[1]")):
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.completions.create(model="demo", prompt=prompt, max_tokens=1)
        assert refused.value.param == param


def test_a_second_turn_reuses_the_first(sdk):
    first = [{"role": "user", "content": "Tell me about the moon. " * 20}]
    said = sdk.chat.completions.create(model="demo", messages=first, max_tokens=40)
    second = [*first, {"role": "assistant", "content": said.choices[0].message.content}, *HELLO]
    usage = sdk.chat.completions.create(model="demo", messages=second, max_tokens=4).usage
    assert usage.prompt_tokens_details.cached_tokens >= 64
    salted = sdk.chat.completions.create(
        model="demo", messages=second, max_tokens=4, extra_body={"cache_salt": "another"}
    )
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_a_required_tool_is_called_with_arguments_that_fit(sdk):
    tools = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "news")
    ]
    named = {"type": "function", "function": {"name": "news"}}
    for choice, names in (("required", {"weather", "news"}), (named, {"news"})):
        settings = {"messages": HELLO, "tools": tools, "tool_choice": choice, "max_tokens": 200, "seed": 5}
        whole = sdk.chat.completions.create(model="demo", **settings).choices[0]
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
        for call in whole.message.tool_calls:
            assert call.function.name in names
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        pieces = [
            chunk.choices[0] for chunk in sdk.chat.completions.create(model="demo", stream=True, **settings)
        ]
        streamed = "".join(
            call.function.arguments for piece in pieces for call in piece.delta.tool_calls or ()
        )
        assert streamed == "".join(call.function.arguments for call in whole.message.tool_calls)
        assert pieces[-1].finish_reason == "tool_calls"
    whole = sdk.chat.completions.create(model="demo", response_format=FORM, **settings).choices[0]
    assert whole.finish_reason == "tool_calls"  # where a call is required, the form has no say
    only = sdk.chat.completions.create(
        model="demo", parallel_tool_calls=False, **settings | {"tool_choice": "required"}
    ).choices[0]
    assert len(only.message.tool_calls) == 1


@pytest.mark.parametrize("max_tokens", [1, 2, 4, 8, 16])
def test_a_required_call_that_is_cut_leaves_no_text(sdk, max_tokens):
    settings = {"messages": HELLO, "tools": WEATHER, "tool_choice": "required", "max_tokens": max_tokens}
    whole = sdk.chat.completions.create(model="demo", **settings).choices[0]
    assert (whole.finish_reason, whole.message.content) in (("length", None), ("length", ""))
    assert all(call.function.name == "weather" for call in whole.message.tool_calls or ())


@pytest.mark.parametrize("seed", range(3))
def test_beside_tools_an_answer_is_a_call_or_follows_its_schema(sdk, seed):
    settings = {"messages": HELLO, "tools": WEATHER, "response_format": FORM, "max_tokens": 200, "seed": seed}
    choice = sdk.chat.completions.create(model="demo", **settings).choices[0]
    calls = choice.message.tool_calls
    said = calls[0].function.arguments if calls else choice.message.content
    jsonschema.validate(json.loads(said), SCHEMA)
    assert choice.finish_reason == ("tool_calls" if calls else "stop")


def test_a_banned_token_is_not_written(sdk, http):
    told = sdk.completions.create(model="demo", prompt="Hello", max_tokens=1, temperature=0, logprobs=1)
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    [token] = http.post("/v1/completions", json=body).json()["choices"][0]["token_ids"]
    other = http.post("/v1/completions", json=body | {"logit_bias": {str(token): -100}}).json()
    assert other["choices"][0]["text"] != told.choices[0].text


def test_embeddings_are_unit_vectors_in_the_order_of_the_input(sdk):
    answer = sdk.embeddings.create(model="demo", input=["one", "two two", "one"])
    vectors = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    for vector in vectors:
        assert math.fsum(x * x for x in vector) == pytest.approx(1, abs=1e-4)
    whole = sdk.embeddings.create(model="demo", input="one", dimensions=len(vectors[0]))
    assert len(whole.data[0].embedding) == len(vectors[0])
    with pytest.raises(openai.BadRequestError, match="do not say that its vectors of") as refused:
        sdk.embeddings.create(model="demo", input="one", dimensions=8, encoding_format="float")
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model="demo", input=[])
    assert refused.value.param == "input"
