"""OpenAI's requests, chats above all: what is understood, what is refused by name, what is ignored."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest

from gateway.dialects.fields import MAX_INT
from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import completions as openai_completions
from gateway.dialects.writing import json_string
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.conversation import ImagePart, Message, TextPart, Tool, ToolCall
from ipc.messages.replies import Finished, Started
from ipc.messages.requests import Generate
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


def test_json_text_is_one_line_for_everybody() -> None:
    text = 'a"\n\r\u0085\u2028\u2029é😀'
    encoded = json_string(text).decode()
    assert json.loads(encoded) == text
    assert len(encoded.splitlines()) == 1


def test_an_embedding_is_as_long_as_the_client_likes() -> None:
    assert embed().normalize is None  # as the model says
    assert embed(normalize=False).normalize is False
    assert refusal(embed, add_special_tokens=False).param == "add_special_tokens"
