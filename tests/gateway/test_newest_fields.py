"""Every field that SDKs have for Responses and Messages: honoured, refused by its name, or a hint that leaves
the answer as it is; and the page for users says which."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects import RequestContext
from gateway.dialects.anthropic.messages import MessageFields
from gateway.dialects.anthropic.messages import parse as parse_message
from gateway.dialects.openai.responses import request
from gateway.dialects.openai.responses.fields import CreateFields
from ipc.errors import Code, CortexError
from ipc.messages.requests import Generate

REQUIRED: dict[str, dict[str, Any]] = {
    "responses": {"model": "m", "input": "x"},
    "messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
}
HONOURED: dict[str, set[str]] = {
    "responses": {
        *("model", "input", "instructions", "previous_response_id", "conversation", "store", "background"),
        *("tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "max_output_tokens", "include"),
        *("temperature", "top_p", "top_logprobs", "reasoning", "text", "truncation", "stream"),
        *("stream_options", "prompt_cache_key"),
    },
    "messages": {
        *("model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "top_k"),
        *("stream", "tools", "tool_choice", "thinking", "output_config", "output_format", "compaction"),
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "responses": {"prompt": {"id": "p"}, "moderation": {"model": "m"}},
    "messages": {
        "mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}],
        "container": "c",
        "thread": {"type": "create"},
    },
}
HINTS: dict[str, dict[str, Any]] = {
    "responses": {
        "access_programs": {"cyber": "standard"},
        "background_options": {"completion_window": "2h"},
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
        "image": {"context_compression": "auto"},
        "metadata": {"a": "b"},
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "ultrafast",
        "user": "u",
    },
    "messages": {
        "billing_policy": {"type": "billing_policy", "bill_to": "self"},
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "compact_20260112"}]},
        "diagnostics": {"previous_message_id": "msg_1"},
        "fallback_credit_token": "t",
        "fallbacks": [{"model": "m"}],
        "inference_geo": "eu",
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "speed": "fast",
        "user_profile_id": "u",
        "workspace_id": "w",
    },
}
APIS = pytest.mark.parametrize("api", REQUIRED)


def read(api: str, fields: dict[str, Any]) -> Generate:
    body = json.dumps(REQUIRED[api] | fields).encode()
    if api == "messages":
        return asyncio.run(parse_message(body, RequestContext("r")))[0]
    return asyncio.run(request.read(body, RequestContext("r"), None)).generate


def cases(table: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(api, field) for api, fields in table.items() for field in fields]


@APIS
def test_what_is_honoured_is_read(api: str) -> None:
    fields = {"responses": CreateFields, "messages": MessageFields}[api].__struct_fields__
    assert set(fields) >= HONOURED[api]


@pytest.mark.parametrize(("api", "field"), cases(REFUSED))
def test_what_cannot_be_had_is_refused_by_name(api: str, field: str) -> None:
    with pytest.raises(CortexError) as refused:
        read(api, {field: REFUSED[api][field]})
    assert (refused.value.code, refused.value.param) == (Code.NOT_SUPPORTED, field)


@pytest.mark.parametrize(("api", "field"), cases(HINTS))
def test_a_hint_changes_nothing(api: str, field: str) -> None:
    assert read(api, {field: HINTS[api][field]}) == read(api, {field: None}) == read(api, {})


@APIS
def test_the_page_tells_of_every_field(api: str) -> None:
    page = (Path(__file__).parents[2] / "docs/api.md").read_text()
    start, end = {
        "responses": ("\n## Responses", "\n## Anthropic's"),
        "messages": ("\n## Anthropic's", "\n## Conn"),
    }[api]
    section = page[page.index(start) : page.index(end)]
    for field in (*HONOURED[api], *REFUSED[api], *HINTS[api]):
        assert re.search(rf'[`"]{field}\b', section), field


def test_the_table_has_every_field_that_openai_s_package_knows() -> None:
    pytest.importorskip("openai")
    from openai.types.responses import response_create_params

    kinds = response_create_params.ResponseCreateParamsNonStreaming
    known = kinds.__required_keys__ | kinds.__optional_keys__
    assert known <= HONOURED["responses"] | REFUSED["responses"].keys() | HINTS["responses"].keys()
