"""`/tokenize`, `/detokenize`, and the addresses for ranking."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.dialects.vllm import tokens
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.replies import Tokens
from ipc.messages.requests import Tokenize
from ipc.messages.sampling import Thinking
from tests.gateway.parsing import TOOL, USER, chat, parsed, refusal


def tokenize(**fields: Any) -> Tokenize:
    return parsed(tokens.parse_tokenize, json.dumps({"model": "m"} | fields).encode())[0]


def detokenize(**fields: Any) -> Any:
    return parsed(tokens.parse_detokenize, json.dumps({"model": "m"} | fields).encode())[0]


def written(**fields: Any) -> dict[str, Any]:
    answer = parsed(tokens.parse_tokenize, json.dumps({"model": "m", "prompt": "x"} | fields).encode())[1]
    pieces = [b"a", b"\xc3"] if fields else None
    return json.loads(answer.whole(Tokens(id=1, token_ids=[4, 5], context_length=9, pieces=pieces)))


def test_a_text_is_taken_under_both_names() -> None:
    assert tokenize(prompt="x") == tokenize(content="x") == Tokenize(id=0, model="m", prompt="x")
    assert tokenize(prompt="x", add_special_tokens=False) == tokenize(prompt="x", add_special=False)
    assert tokenize(prompt="x", add_special_tokens=False).add_special_tokens is False


def test_messages_are_tokenised_as_a_chat_with_the_same_fields_reads_them() -> None:
    fields = {
        "messages": [USER, {"role": "assistant", "refusal": "no"}],
        "tools": [TOOL],
        "reasoning_effort": "low",
        "chat_template_kwargs": {"a": 1},
    }
    one, other = tokenize(**fields), chat(**fields)
    for name in ("messages", "tools", "template_args", "thinking"):
        assert getattr(one, name) == getattr(other, name)
    assert one.messages[1] == Message(role="assistant", content="no")
    assert one.thinking == Thinking(enabled=True, effort="low")
    assert tokenize(messages=[USER], tools=[TOOL], tool_choice="none").tools == []


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, Code.BAD_REQUEST, "prompt"),
        ({"prompt": "x", "messages": [USER]}, Code.BAD_REQUEST, "prompt"),
        ({"prompt": "x", "content": "x"}, Code.BAD_REQUEST, "content"),
        ({"messages": [USER] * 10_001}, Code.BAD_REQUEST, "messages"),
        ({"prompt": ""}, Code.BAD_REQUEST, "prompt"),
        ({"prompt": ["x"]}, Code.BAD_REQUEST, "prompt"),
        ({"messages": []}, Code.BAD_REQUEST, "messages"),
        ({"messages": [{"role": "robot"}]}, Code.BAD_REQUEST, "messages[0].role"),
        ({"prompt": "x", "tools": [TOOL]}, Code.BAD_REQUEST, "tools"),
        ({"prompt": "x", "with_pieces": 1}, Code.BAD_REQUEST, "with_pieces"),
        ({"prompt": "x", "add_special_tokens": "no"}, Code.BAD_REQUEST, "add_special_tokens"),
        ({"messages": [USER], "add_generation_prompt": False}, Code.NOT_SUPPORTED, "add_generation_prompt"),
        ({"prompt": "x", "parse_special": False}, Code.NOT_SUPPORTED, "parse_special"),
    ],
)
def test_a_wrong_text_to_tokenise_is_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    error = refusal(tokenize, **fields)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "tokens"),
        ({"tokens": "x"}, "tokens"),
        ({"tokens": [1, -1]}, "tokens[1]"),
        ({"tokens": [1.5]}, "tokens[0]"),
    ],
)
def test_wrong_tokens_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(detokenize, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


def test_a_complaint_about_a_text_names_what_the_client_sent() -> None:
    answer = parsed(tokens.parse_tokenize, b'{"model":"m","content":"x"}')[1]
    error = answer.in_client_words(
        CortexError(Code.CONTEXT_LENGTH_EXCEEDED, "prompt: too long", param="prompt")
    )
    assert (error.param, error.message) == ("content", "content: too long")


def test_tokens_are_written_as_vllm_and_as_llama_cpp_do() -> None:
    assert written() == {"count": 2, "max_model_len": 9, "tokens": [4, 5], "token_strs": None}
    assert written(return_token_strs=True)["token_strs"] == ["a", "\ufffd"]
    assert written(with_pieces=True)["tokens"] == [{"id": 4, "piece": "a"}, {"id": 5, "piece": [0xC3]}]


def test_a_client_tokenises_and_detokenises(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": "echo", "prompt": "one two"}).json()
    assert answer == {"count": 2, "max_model_len": 9, "tokens": [0, 1], "token_strs": None}
    answer = http.post("/detokenize", json={"model": "echo", "tokens": answer["tokens"]}).json()
    assert answer == {"prompt": "0 1", "content": "0 1"}
    unknown = http.post("/tokenize", json={"model": "nobody's", "prompt": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


RANK = {"model": "echo", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_best_documents_come_first(http: httpx.Client, path: str) -> None:
    asked = RANK | {"documents": ["a", {"text": "long"}, "long", "three"]}
    answer = http.post(path, json=asked | {"top_n": 3, "return_documents": True}).json()
    scores = [
        (each["index"], each["relevance_score"], each["document"]["text"]) for each in answer["results"]
    ]
    assert scores == [(3, 5.0, "three"), (1, 4.0, "long"), (2, 4.0, "long")]  # of equals the earlier one
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    answer = http.post(path, json=asked | {"top_n": None}).json()
    assert [set(each) for each in answer["results"]] == [{"index", "relevance_score"}] * 4
    answer = http.post(path, json=RANK | {"model": "nobody's"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": [1]}, "documents[0]"),
        ({"documents": ["a", {}]}, "documents[1].text"),
        ({"top_n": 0}, "top_n"),
        ({"model": ""}, "model"),
        ({"return_documents": "yes"}, "return_documents"),
    ],
)
def test_a_wrong_request_to_rank_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/rerank", json=RANK | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
