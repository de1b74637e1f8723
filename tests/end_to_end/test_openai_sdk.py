"""The OpenAI Python SDK, as it comes from PyPI, against the whole system."""

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello!"}]


def test_a_chat(sdk):
    answer = sdk.chat.completions.create(model="demo", messages=HELLO, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert "cortex" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_says_the_same(sdk):
    whole = sdk.chat.completions.create(model="demo", messages=HELLO, temperature=0)
    chunks = list(
        sdk.chat.completions.create(
            model="demo",
            messages=HELLO,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_same_seed_gives_the_same_answer(sdk):
    def ask(seed):
        answer = sdk.chat.completions.create(
            model="demo", messages=HELLO, temperature=1.5, seed=seed, max_tokens=30
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(2, 6)}) > 1


def test_a_stop_string_is_not_part_of_the_answer(sdk):
    answer = sdk.chat.completions.create(model="demo", messages=HELLO, temperature=0, stop="model")
    assert answer.choices[0].finish_reason == "stop"
    assert "model" not in answer.choices[0].message.content


def test_a_completion_of_text_and_of_token_ids(sdk):
    options = {"model": "demo", "temperature": 0, "max_tokens": 12}
    ids = {"return_token_ids": True}
    text = sdk.completions.create(prompt="A neuron is", extra_body=ids, **options)
    choice = text.choices[0]
    assert len(choice.token_ids) == text.usage.completion_tokens
    assert len(choice.prompt_token_ids) == text.usage.prompt_tokens
    again = sdk.completions.create(prompt=choice.prompt_token_ids, extra_body=ids, **options)
    assert again.choices[0].text == choice.text
    assert again.choices[0].token_ids == choice.token_ids
    streamed = list(sdk.completions.create(prompt="A neuron is", stream=True, extra_body=ids, **options))
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text
    pieces = [getattr(chunk.choices[0], "token_ids", None) or [] for chunk in streamed]
    assert [token for piece in pieces for token in piece] == choice.token_ids


def test_a_streamed_tool_call_adds_up(sdk):
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    options = {"model": "demo", "messages": question, "tools": [weather], "temperature": 0}
    whole = sdk.chat.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in sdk.chat.completions.create(stream=True, **options)]
    assert whole.finish_reason == chunks[-1].finish_reason == "tool_calls"
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert [piece.function.name for piece in pieces if piece.id] == ["get_weather"]
    arguments = "".join(piece.function.arguments or "" for piece in pieces)
    assert arguments == whole.message.tool_calls[0].function.arguments


def test_models_are_listed_and_found(sdk):
    assert {"demo", "simulated"} <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("demo").id == "demo"


def test_an_unknown_model_is_a_404(sdk):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "gpt-9" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-9")


def test_a_bad_parameter_is_a_400_that_names_it(sdk):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="demo", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"


def test_a_prompt_over_the_context_is_told_with_both_counts(sdk):
    context = sdk.models.retrieve("demo").max_model_len
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "cortex " * 3 * context}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert str(context) in caught.value.message
