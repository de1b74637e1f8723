"""OpenAI's dialects: what is understood, what is refused by name, what is ignored."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import msgspec
import pytest

from gateway.dialects import RequestContext
from gateway.dialects.anthropic import messages as anthropic_messages
from gateway.dialects.fields import MAX_INT
from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import completions as openai_completions
from gateway.dialects.openai import embeddings as openai_embeddings
from gateway.dialects.openai.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from gateway.dialects.openai.responses import request as responses_request
from gateway.dialects.vllm import rerank
from gateway.dialects.writing import encode, json_string
from ipc.errors import Code, CortexError
from ipc.messages.answers import Alternative, Choice, Timings, TokenLogprob, Usage
from ipc.messages.conversation import ImagePart, Message, TextPart, Tool, ToolCall
from ipc.messages.replies import Delta, Finished, Started
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling, Structured
from tests.gateway.parsing import TOOL, USER, chat, completion, embed, parsed, refusal


def test_conversation_keeps_all_that_the_template_needs() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": "two", "reasoning": "so"},
        ]
    )
    assert request.messages == [
        Message(role="developer", content="be brief"),
        Message(role="user", content=[TextPart(text="a"), TextPart(text="b")]),
        Message(
            role="assistant", reasoning="hm", tool_calls=[ToolCall(id="c1", name="f", arguments='{"a": 1}')]
        ),
        Message(role="tool", content="2", tool_call_id="c1"),
        Message(role="assistant", content="two", reasoning="so"),
    ]


def test_sampling_is_taken_as_it_is_spelt() -> None:
    sampling = chat(
        temperature=0,
        top_p=1,
        top_k=-1,
        seed=-1,
        max_tokens=5,
        max_completion_tokens=6,
        stop="end",
        stop_token_ids=[7],
        ignore_eos=True,
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 1, 0)
    assert (sampling.seed, sampling.max_tokens) == ((1 << 64) - 1, 6)
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == (["end"], [7], True)
    assert chat().sampling == type(sampling)()
    assert chat(repeat_penalty=1.1).sampling == chat(repetition_penalty=1.1).sampling


def test_template_arguments_are_those_that_the_client_spells_out() -> None:
    assert chat(reasoning_effort="none").template_args == {}
    args = {"enable_thinking": True, "other": [1]}
    assert chat(reasoning_effort="none", chat_template_kwargs=args).template_args == args


def test_tools_are_told_unless_the_client_says_none() -> None:
    assert chat(tools=[TOOL]).tools == [Tool(definition=TOOL)]
    assert chat(tools=[TOOL], tool_choice="auto").tools == [Tool(definition=TOOL)]
    assert chat(tools=[TOOL], tool_choice="none").tools == []


def test_a_tool_goes_on_as_the_client_wrote_it() -> None:
    schema = {"required": [], "type": "object", "properties": {"b": {}, "a": {"default": 1.0}}}
    tool = {
        "function": {"strict": True, "description": "", "name": "f", "parameters": schema, "x-own": None},
        "type": "function",
    }
    (sent,) = msgspec.msgpack.decode(msgspec.msgpack.encode(chat(tools=[tool])), type=Generate).tools
    assert json.dumps(sent.definition) == json.dumps(tool)
    assert (sent.name, sent.parameters, sent.is_valid()) == ("f", schema, True)


def test_one_call_at_a_time_is_asked_of_the_neuron() -> None:
    assert chat(tools=[TOOL]).parallel_tool_calls
    assert not chat(tools=[TOOL], parallel_tool_calls=False).parallel_tool_calls


def test_an_image_goes_on_as_the_file_that_it_is() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K", "detail": "auto"}}
    content = chat(messages=[{"role": "user", "content": [part]}]).messages[0].content
    assert content == [ImagePart(data=b"\x89PNG\r\n", media_type="image/png")]
    for url in (part["image_url"]["url"], "DATA:image/png;name=a.png;BASE64,iVBORw0K"):
        bare = part | {"image_url": url}
        assert chat(messages=[{"role": "user", "content": [bare]}]).messages[0].content == content


@pytest.mark.parametrize(
    ("image", "code", "param"),
    [
        ({}, Code.BAD_REQUEST, "image_url"),
        ({"image_url": {}}, Code.BAD_REQUEST, "image_url.url"),
        ({"image_url": {"url": "file:///etc/passwd"}}, Code.NOT_SUPPORTED, "image_url.url"),
        ({"image_url": {"url": "data:image/png;base64,"}}, Code.BAD_REQUEST, "image_url.url"),
        ({"image_url": {"url": "data:image/png;base64,no base64"}}, Code.BAD_REQUEST, "image_url.url"),
        ({"image_url": {"url": "data:image/png;base64,AAAé"}}, Code.BAD_REQUEST, "image_url.url"),
    ],
)
def test_an_image_that_is_not_there_is_refused_where_it_should_be(
    image: dict[str, Any], code: str, param: str
) -> None:
    error = refusal(chat, messages=[USER, {"role": "user", "content": [{"type": "image_url"} | image]}])
    assert (error.code, error.param) == (code, f"messages[1].content[0].{param}")


def test_a_call_may_be_required_of_any_tool_or_of_one() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    assert chat(tools=[TOOL, other], tool_choice="auto").must_call == []
    for word in ("required", "any"):
        assert chat(tools=[TOOL, other], tool_choice=word).must_call == ["f", "g"]
    assert chat(tools=[TOOL, other], tool_choice=other).must_call == ["g"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [TOOL]}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
            "tool_choice.function.name",
        ),
    ],
)
def test_a_call_of_what_is_not_there_cannot_be_required(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"audio": {"voice": "x"}},
        {"modalities": ["audio"]},
        {"web_search_options": {}},
        {"best_of": 2},
        {"skip_special_tokens": False},
        {"grammar": "root ::= x"},
        {"typical_p": 0.9},
        {"mirostat": 2},
        {"dry_multiplier": 0.8},
        {"xtc_probability": 0.5},
        {"top_n_sigma": 1.5},
        {"stop_regex": "a+"},
        {"echo": True},
        {"add_special_tokens": True},
        {"return_tokens_as_token_ids": True},
        {"audio": [[[["x"]]]]},
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields: dict[str, Any]) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, next(iter(fields)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
                ]
            },
            "messages[1].content[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"type": "mcp"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_what_is_no_text_is_refused_where_it_stands(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, param)


def test_hints_and_neutral_values_are_ignored() -> None:
    plain = chat()
    for fields in (
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"parallel_tool_calls": True, "verbosity": "low", "safety_identifier": "s", "never_heard_of": [1]},
        {
            "n": 1,
            "logprobs": False,
            "logit_bias": {},
            "presence_penalty": 0.0,
            "response_format": {"type": "text"},
        },
        {"stream_options": None, "modalities": ["text"]},
        {"echo": False, "add_special_tokens": False, "logits_processors": []},
        {"typical_p": 1.0, "top_a": 0, "mirostat": 0, "dry_multiplier": 0.0, "xtc_probability": 0},
        {"n": None, "stop": None, "tools": None, "temperature": None, "max_tokens": None, "stream": None},
    ):
        assert chat(**fields) == plain


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": MAX_INT + 1}, "top_k"),
        ({"max_tokens": MAX_INT + 1}, "max_tokens"),
        ({"max_completion_tokens": 10**400}, "max_completion_tokens"),
        ({"min_tokens": 1 << 64}, "min_tokens"),
        ({"priority": MAX_INT + 1}, "priority"),
        ({"priority": -MAX_INT - 2}, "priority"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"seed": "1"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": "x" * 1001}, "stop"),
        ({"bad_words": ["x" * 257]}, "bad_words[0]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "n" * 257}}]}, "tools[1].function.name"),
        ({"tools": [TOOL | {"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"messages": [USER] * 10_001}, "messages"),
        (
            {"messages": [USER, {"role": "user", "content": [{"type": "text", "text": "x"}] * 10_001}]},
            "messages[1].content",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{}] * 10_001}]}, "messages[0].tool_calls"),
        ({"tools": [TOOL] * 1025}, "tools"),
        ({"functions": [{"name": "f"}] * 1025}, "functions"),
        ({"logit_bias": {f"{token}": 1 for token in range(1025)}}, "logit_bias"),
        ({"messages": [USER | {"name": "n" * 257}]}, "messages[0].name"),
        ({"messages": [{"role": "tool", "tool_call_id": "n" * 257}]}, "messages[0].tool_call_id"),
    ],
)
def test_wrong_type_or_range_is_a_bad_request_that_names_the_path(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


BIG = {"maximum": 1 << 64}


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": form(BIG)}, "response_format"),
        ({"structured_outputs": {"json": BIG}}, "structured_outputs"),
        ({"guided_json": json.dumps(BIG)}, "guided_json"),
        (
            {"tools": [TOOL, {"type": "function", "function": {"name": "g", "parameters": BIG}}]},
            "tools[1]",
        ),
        ({"chat_template_kwargs": {"a": [-(1 << 63) - 1]}}, "chat_template_kwargs"),
    ],
)
def test_a_number_that_no_message_can_hold_is_refused_where_it_stands(
    fields: dict[str, Any], param: str
) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)
    assert error.message == f"{param}: a number in it does not fit into 64 bits"
    assert chat(chat_template_kwargs={"a": [(1 << 64) - 1, -(1 << 63)]}).template_args


@pytest.mark.parametrize("levels", [*range(800, 1000, 2), 5000])
def test_deep_nesting_is_refused_before_a_message_is_made_of_it(levels: int) -> None:
    text = b'{"a":' * levels + b"1" + b"}" * levels
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"chat_template_kwargs":%s}' % text
    with contextlib.suppress(CortexError):
        request, _ = parsed(openai_chat.parse, body)
        msgspec.msgpack.encode([[[request]]])  # further in than parsing, as sending is
    with pytest.raises(CortexError):
        chat(guided_json=text.decode() + "}")


@pytest.mark.parametrize("key", ["1" * 5000, "4294967296", "-1", "01", "00", "٣", "²", "1_0", " 1", "", "x"])
def test_a_bias_for_what_is_no_token_id_is_refused(key: str) -> None:
    error = refusal(chat, logit_bias={"1": 1, key: 2})
    assert (error.code, error.param) == (Code.BAD_REQUEST, "logit_bias")
    assert len(error.message) < 200


def test_all_biases_for_what_is_no_token_id_are_named() -> None:
    error = refusal(chat, logit_bias={"1": 1, "one": 1, "2": 1, "-3": 1})
    assert error.message == "logit_bias: 'one', '-3' are no token ids"
    error = refusal(chat, logit_bias={"7": 101, "8": 100, "9": -1e30})
    assert error.message == "logit_bias: '7', '9': not between -100 and 100"
    many = refusal(chat, logit_bias={f"no{number}": 1 for number in range(1000)})
    assert "'no7'" in many.message
    assert len(many.message) < 200


@pytest.mark.parametrize("seed", [1 << 64, -(1 << 63) - 1, 10**400])
def test_a_seed_beyond_64_bits_is_refused_by_name(seed: int) -> None:
    for parse in (chat, completion):
        error = refusal(parse, seed=seed)
        assert (error.code, error.param) == (Code.BAD_REQUEST, "seed")
        assert "64 bits" in error.message
        assert len(error.message) < 200


@pytest.mark.parametrize("seed", [(1 << 64) - 1, -(1 << 63), 0])
def test_a_seed_of_64_bits_is_taken(seed: int) -> None:
    assert chat(seed=seed).sampling.seed == seed % (1 << 64)


def test_stream_options_need_a_stream() -> None:
    options = {"include_usage": True}
    for parse in (chat, completion):
        for fields in ({}, {"stream": False}, {"stream": None}):
            error = refusal(parse, stream_options=options, **fields)
            assert (error.code, error.param) == (Code.BAD_REQUEST, "stream_options")
        assert parse(stream_options=options, stream=True).stream
        assert not parse(stream_options=None).stream


def test_a_completion_has_sixteen_tokens_where_nobody_says_how_many() -> None:
    assert completion().sampling.max_tokens == 16
    assert completion(max_tokens=None).sampling.max_tokens == 16
    assert completion(max_tokens=17).sampling.max_tokens == 17
    assert completion(max_tokens=-1).sampling.max_tokens is None
    assert chat(max_tokens=-1).sampling.max_tokens is None
    assert chat(max_tokens=-1, max_completion_tokens=5).sampling.max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=-1).sampling.max_tokens is None
    assert completion(max_tokens=0, echo=True).sampling.max_tokens == 0
    assert chat().sampling.max_tokens is None


def test_a_bias_may_be_for_any_token_id() -> None:
    assert chat(logit_bias={"0": 1, "4294967295": 2}).sampling.logit_bias == {0: 1, 4294967295: 2}


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": LONG}]},
        {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
        {"tools": [{"type": LONG}]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": LONG}}},
        {"structured_outputs": {LONG: 1}},
        {"best_of": 10**400},
        {"modalities": [LONG] * 100},
        {"audio": {LONG: {LONG: LONG}}},
        {"logit_bias": {LONG: 1}},
    ],
)
def test_a_message_repeats_no_more_than_the_ends_of_a_long_value(fields: dict[str, Any]) -> None:
    assert len(refusal(chat, **fields).message) < 700


def test_a_value_cannot_pass_for_the_path_of_the_fault() -> None:
    for role in ("x - at `$.seed`", "missing required field `seed`"):
        error = refusal(chat, messages=[{"role": role}])
        assert error.param == "messages[0].role"
        assert role in error.message


@pytest.mark.parametrize(
    ("fields", "theirs", "param", "message"),
    [
        ({}, "template_args.tools", "chat_template_kwargs.tools", "chat_template_kwargs: no"),
        ({"tools": [TOOL]}, "must_call", "tool_choice", "tool_choice: no"),
        ({"max_completion_tokens": 2}, "max_tokens", "max_completion_tokens", "max_completion_tokens: no"),
        ({"guided_json": {}}, "structured_outputs.json", "guided_json", "guided_json: no"),
        ({"max_tokens": 2}, "max_tokens", "max_tokens", "max_tokens: no"),
        ({}, None, None, "no"),
    ],
)
def test_a_neurons_error_names_what_the_client_sent(
    fields: dict[str, Any], theirs: str | None, param: str | None, message: str
) -> None:
    _, answer = parsed(openai_chat.parse, json.dumps({"model": "m", "messages": [USER]} | fields).encode())
    text = "no" if theirs is None else f"{theirs.removesuffix('.tools')}: no"
    error = answer.in_client_words(CortexError(Code.BAD_REQUEST, text, param=theirs))
    assert (error.param, error.message) == (param, message)


@pytest.mark.parametrize("text", [b'"a\\ud800"', b'"\\ud800 and more"', b'"\\udc00"', b'"a', b'"\xff"'])
def test_half_a_character_is_no_json(text: bytes) -> None:
    with pytest.raises(CortexError, match=r"the body is not valid JSON: .*(surrogate|utf-8)"):
        parsed(openai_completions.parse, b'{"model":"m","prompt":%s}' % text)


@pytest.mark.parametrize(
    "prompt",
    ["x", ["x"], ["a", "b"], [1, 2], [[1, 2]], [[1], [2, 3]], ["x"] * 128],
)
def test_prompts_are_texts_or_token_ids(prompt: Any) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        (["a", ""], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        (["a", [1]], "prompt[1]"),
        ([[1, -1]], "prompt[0][1]"),
        ([[1], [2, "a"]], "prompt[1][1]"),
        ([True], "prompt[0]"),
        (7, "prompt"),
    ],
)
def test_other_prompts_are_refused(prompt: Any, param: str) -> None:
    error = refusal(completion, prompt=prompt)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


@pytest.mark.parametrize(("prompts", "n"), [(129, 1), (2, 65), (128, 2)])
def test_more_choices_than_the_limit_are_refused_with_it(prompts: int, n: int) -> None:
    error = refusal(completion, prompt=["x"] * prompts, n=n)
    assert (error.code, error.param) == (Code.BAD_REQUEST, "prompt")
    assert "128" in error.message


def test_completions_refuse_what_they_do_not_do() -> None:
    for fields in (
        {"best_of": 2},
        {"add_special_tokens": False},
        {"prompt_embeds": "AAAA"},
        {"return_tokens_as_token_ids": True},
        {"logits_processors": ["x"]},
        {"max_completion_tokens": 5},
        {"top_logprobs": 2},
    ):
        assert refusal(completion, **fields).param == next(iter(fields))
    assert completion(suffix="x").suffix == "x"
    assert completion(prompt="", suffix="x").prompt == ""
    assert completion(suffix="") == completion()
    neutral = {"add_special_tokens": True, "return_tokens_as_token_ids": False, "top_logprobs": 0}
    assert completion(**neutral) == completion()


def test_an_answer_without_a_thought_says_so_under_both_names() -> None:
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    _, answer = parsed(openai_chat.parse, body)
    finished = Finished(id=1, choices=[Choice(reason="stop", text="a")], usage=Usage(), timings=Timings())
    message = json.loads(answer.whole(Started(id=1, prompt_tokens=1), finished))["choices"][0]["message"]
    assert message == {
        "content": "a",
        "reasoning_content": None,
        "reasoning": None,
        "role": "assistant",
        "refusal": None,
    }


@pytest.mark.parametrize("given", ["x", ["x"], ["a", "b"], [1, 2], [[1, 2]], [[1], [2, 3]]])
def test_inputs_are_texts_or_token_ids(given: Any) -> None:
    one = isinstance(given, str) or isinstance(given[0], int)
    assert embed(input=given).input == ([given] if one else given)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [True]}, "input[0]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[1, "a"]]}, "input[0][1]"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": MAX_INT + 1}, "dimensions"),
        ({"priority": -MAX_INT - 2}, "priority"),
    ],
)
def test_other_inputs_are_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(embed, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


@pytest.mark.parametrize(
    ("given", "theirs", "param"),
    [("x", "input[0]", "input"), ([7], "input[0][0]", "input[0]"), (["x"], "input[0]", "input[0]")],
)
def test_a_neurons_error_names_the_input_that_the_client_sent(given: Any, theirs: str, param: str) -> None:
    _, answer = parsed(openai_embeddings.parse, json.dumps({"model": "m", "input": given}).encode())
    error = answer.in_client_words(CortexError(Code.BAD_REQUEST, f"{theirs} is bad", param=theirs))
    assert (error.param, error.message) == (param, f"{param} is bad")


def test_everything_about_sampling_reaches_the_neuron() -> None:
    sampling = chat(
        n=2,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={"5": -100},
        allowed_token_ids=[5, 6],
        bad_words=["x"],
        min_tokens=3,
        include_stop_str_in_output=True,
        logprobs=True,
        top_logprobs=4,
        prompt_logprobs=1,
    ).sampling
    assert sampling == Sampling(
        n=2,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={5: -100},
        allowed_token_ids=[5, 6],
        bad_words=["x"],
        min_tokens=3,
        include_stop=True,
        logprobs=4,
        prompt_logprobs=1,
    )
    assert chat(logprobs=True).sampling.logprobs == 0
    assert completion(logprobs=3).sampling.logprobs == 3
    request = completion(echo=True, max_tokens=0, priority=-1, cache_salt="mine")
    assert (request.echo, request.sampling.max_tokens) == (True, 0)
    assert (request.priority, request.cache_salt) == (-1, "mine")


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, None), ("5m", 300.0), (0, 0.0), ("0", 0.0), (-1, -1.0), (12.5, 12.5)]
)
def test_keep_alive_is_read_as_ollama_has_it_wherever_a_model_is_loaded(
    given: Any, seconds: float | None
) -> None:
    def body(**fields: Any) -> bytes:
        return json.dumps({"model": "m", "keep_alive": given} | fields).encode()

    requests = [parse(keep_alive=given) for parse in (chat, completion, embed)]
    requests.append(parsed(rerank.parse, body(query="q", documents=["d"]))[0])
    requests.append(parsed(anthropic_messages.parse, body(messages=[USER], max_tokens=9))[0])
    asker = RequestContext("r")
    requests.append(asyncio.run(responses_request.read(body(input="x"), asker, None)).generate)
    assert [request.keep_alive for request in requests] == [seconds] * len(requests)
    assert refusal(chat, keep_alive="soon").param == "keep_alive"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "structured"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structured(json_object=True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            Structured(json=SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Structured(json=SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Structured(json=SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, Structured(regex="a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Structured(choice=["a", "b"])),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Structured(grammar='start: "a"')),
        ({"structured_outputs": {"json_object": True}}, Structured(json_object=True)),
        ({"guided_json": SCHEMA}, Structured(json=SCHEMA)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Structured(json=SCHEMA)),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Structured(json=SCHEMA)),
        ({"json_schema": SCHEMA}, Structured(json=SCHEMA)),
        ({"json_schema": json.dumps(SCHEMA)}, Structured(json=SCHEMA)),
        ({"regex": "a+"}, Structured(regex="a+")),
        ({"guided_choice": ["a"]}, Structured(choice=["a"])),
    ],
)
def test_what_an_answer_must_look_like_is_understood_in_every_spelling(
    fields: dict[str, Any], structured: Structured | None
) -> None:
    assert chat(**fields).structured == structured
    assert completion(**fields).structured == structured


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop": [f"{i}" for i in range(17)]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_what_is_out_of_range_or_contradicts_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


def test_no_tokens_need_an_echo() -> None:
    assert refusal(completion, max_tokens=0).param == "max_tokens"
    assert refusal(completion, logprobs=21).param == "logprobs"


def test_a_neuron_s_complaint_is_told_in_the_words_of_the_client() -> None:
    def param(field: str, **fields: Any) -> str | None:
        body = {"model": "m", "messages": [USER]} | fields
        _, answer = parsed(openai_chat.parse, json.dumps(body).encode())
        return answer.in_client_words(CortexError(Code.BAD_REQUEST, "no", param=field)).param

    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    schema = "structured_outputs.json"
    assert param(schema, response_format=form) == "response_format.json_schema.schema"
    assert param(schema, structured_outputs={"json": SCHEMA}) == schema
    assert param(schema, guided_json=SCHEMA) == "guided_json"
    bare = {"type": "json_object", "schema": SCHEMA}
    assert param(schema, response_format=bare) == "response_format.schema"
    assert param("max_tokens", max_completion_tokens=5) == "max_completion_tokens"
    assert param("messages") == "messages"


A = TokenLogprob(token_id=1, token="a", raw=b"a", logprob=-0.5, rank=1)
B = TokenLogprob(
    token_id=2,
    token="\ufffd",
    raw=b"\xc3",
    logprob=-2.0,
    rank=2,
    top=[Alternative(token_id=1, token="a", raw=b"a", logprob=-float("inf"))],
)
FIRST = TokenLogprob(token_id=0, token="<s>", raw=b"<s>", logprob=None, rank=0)


def test_logprobs_of_a_chat_are_written_as_openai_does() -> None:
    assert json.loads(encode(chat_logprobs([A, B])))["content"] == [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []},
        {
            "token": "\ufffd",
            "logprob": -2.0,
            "bytes": [0xC3],
            "top_logprobs": [{"token": "a", "logprob": -9999.0, "bytes": [97]}],
        },
    ]


def test_logprobs_of_a_completion_have_one_entry_a_token() -> None:
    assert json.loads(encode(completion_logprobs([FIRST, A, B], 10))) == {
        "tokens": ["<s>", "a", "\ufffd"],
        "token_logprobs": [None, -0.5, -2.0],
        "top_logprobs": [None, {"a": -0.5}, {"a": -9999.0, "\ufffd": -2.0}],
        "text_offset": [10, 13, 14],
    }


def test_prompt_logprobs_are_written_as_vllm_does() -> None:
    assert prompt_logprobs([FIRST, A])[0] is None
    assert prompt_logprobs([FIRST, A])[1] == {"1": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}


def test_choices_are_written_with_their_numbers() -> None:
    body = {"model": "m", "messages": [USER], "n": 2, "logprobs": True}
    _, answer = parsed(openai_chat.parse, json.dumps(body).encode())
    choices = [Choice(reason="stop", index=i, text=f"{i}", logprobs=[A]) for i in range(2)]
    finished = Finished(id=1, choices=choices, usage=Usage(), timings=Timings())
    whole = json.loads(answer.whole(Started(id=1, prompt_tokens=1), finished))
    assert [(each["index"], each["message"]["content"]) for each in whole["choices"]] == [(0, "0"), (1, "1")]
    assert whole["choices"][1]["logprobs"]["content"][0]["token"] == "a"
    chunk = json.loads(answer.delta(Delta(id=1, tokens=1, index=1, text="x", logprobs=[B]))[6:])
    assert (chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) == (1, {"content": "x"})
    assert chunk["choices"][0]["logprobs"]["content"][0]["logprob"] == -2.0
    assert answer.finished(finished).count(b'"finish_reason":"stop"') == 2


def test_an_echo_counts_its_offsets_from_the_prompt() -> None:
    body = {"model": "m", "prompt": "<s>a", "echo": True, "logprobs": 1}
    _, answer = parsed(openai_completions.parse, json.dumps(body).encode())
    first = Delta(id=1, tokens=1, text="<s>ab", logprobs=[B], prompt_logprobs=[FIRST, A])
    second = Delta(id=1, tokens=1, text="c", logprobs=[A])
    told = [json.loads(answer.delta(delta)[6:])["choices"][0]["logprobs"] for delta in (first, second)]
    assert [each["text_offset"] for each in told] == [[0, 3, 4], [5]]


def two_prompts(**fields: Any) -> openai_completions.CompletionAnswer:
    """The writer for two choices of each of two prompts, asked for all that can be told of a prompt."""
    body = {"model": "m", "prompt": ["<s>a", "<s>b"], "n": 2, "return_token_ids": True}
    body |= {"echo": True, "logprobs": 1, "prompt_logprobs": 1}
    return parsed(openai_completions.parse, json.dumps(body | fields).encode())[1]


PROMPT_IDS = [[0, 1], [0, 2]]
TOLD = [[FIRST, A], [FIRST, B]]


def test_each_choice_has_what_is_told_of_its_own_prompt() -> None:
    choices = [Choice(reason="stop", index=i, text=f"{i}", token_ids=[i], logprobs=[A]) for i in range(4)]
    finished = Finished(id=1, choices=choices, usage=Usage(), timings=Timings(), prompt_logprobs=TOLD)
    started = Started(id=1, prompt_tokens=4, prompt_token_ids=PROMPT_IDS)
    whole = json.loads(two_prompts().whole(started, finished))["choices"]
    assert [(each["index"], each["text"]) for each in whole] == [(i, f"{i}") for i in range(4)]
    assert [each["prompt_token_ids"] for each in whole] == [[0, 1], [0, 1], [0, 2], [0, 2]]
    tokens = [each["logprobs"]["tokens"] for each in whole]
    assert tokens == [["<s>", "a", "a"]] * 2 + [["<s>", "\ufffd", "a"]] * 2
    assert [next(iter(each["prompt_logprobs"][1])) for each in whole] == ["1", "1", "2", "2"]


def test_streamed_choices_begin_with_their_own_prompt() -> None:
    answer = two_prompts()
    started = answer.started(Started(id=1, prompt_tokens=4, prompt_token_ids=PROMPT_IDS))
    heads = [json.loads(event[6:])["choices"][0] for event in started.split(b"\n\n")[:-1]]
    assert [(each["index"], each["prompt_token_ids"]) for each in heads] == [
        (0, [0, 1]),
        (1, [0, 1]),
        (2, [0, 2]),
        (3, [0, 2]),
    ]

    def tokens(index: int, told: list[TokenLogprob] | None = None) -> list[str]:
        delta = Delta(id=1, tokens=1, index=index, text="a", logprobs=[A], prompt_logprobs=told)
        return json.loads(answer.delta(delta)[6:])["choices"][0]["logprobs"]["tokens"]

    assert [tokens(2, TOLD[1]), tokens(0, TOLD[0])] == [["<s>", "\ufffd", "a"], ["<s>", "a", "a"]]
    assert [tokens(3), tokens(1)] == [["<s>", "\ufffd", "a"], ["<s>", "a", "a"]]
    assert tokens(3) == ["a"]


def test_json_text_is_one_line_for_everybody() -> None:
    text = 'a"\n\r\u0085\u2028\u2029é😀'
    encoded = json_string(text).decode()
    assert json.loads(encoded) == text
    assert len(encoded.splitlines()) == 1


def test_an_embedding_is_as_long_as_the_client_likes() -> None:
    assert embed().normalize is None  # as the model says
    assert embed(normalize=False).normalize is False
    assert refusal(embed, add_special_tokens=False).param == "add_special_tokens"
