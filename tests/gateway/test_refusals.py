"""What is refused over HTTP before any model is asked, and what it leaves behind."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from tests.gateway.conftest import GatewayProcess, eventually

BODY = json.dumps({"model": "echo", "prompt": "x"}).encode()
UPGRADE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/nothing"])
def test_a_web_socket_is_refused_without_a_word_in_the_log(gateway: GatewayProcess, path: str) -> None:
    before = gateway.log.read_text()
    assert httpx.get(gateway.base + path, headers=UPGRADE, trust_env=False).status_code == 403
    said = gateway.log.read_text().removeprefix(before).splitlines()
    assert [line for line in said if "request ended" not in line] == []  # of a request before it


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
def test_a_compressed_body_is_refused_by_the_name_of_its_header(http: httpx.Client, path: str) -> None:
    answer = http.post(
        path,
        content=gzip.compress(BODY),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "content-encoding: 'gzip'" in error["message"]


def test_a_body_that_says_it_is_not_compressed_is_taken(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/completions",
        content=BODY,
        headers={"content-type": "application/json", "content-encoding": "Identity"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/echo", "/v1/models/none", "/ready", "/version"])
def test_head_tells_what_get_would(http: httpx.Client, path: str) -> None:
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_the_name_of_a_model_is_repeated_in_part(
    gateway: GatewayProcess, http: httpx.Client, path: str
) -> None:
    before = len(gateway.log.read_text())
    answer = http.post(path, json={"model": "\n" + "m" * 1000, "prompt": "x", "input": "x"})
    assert answer.status_code == 404
    assert "mmm" in answer.text
    assert len(answer.content) < 1000

    def said() -> list[str]:
        return [line for line in gateway.log.read_text()[before:].splitlines() if "mmm" in line]

    (line,) = eventually(said, "the line of the request in the log")
    assert "model='\\nmmm" in line
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "x" * 1025),
        ("cache_salt", "x" * 300),
        ("tools", [{"type": "function", "function": {"name": "x" * 300}}]),
    ],
)
def test_a_field_that_travels_has_a_bound(http: httpx.Client, field: str, value: object) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]} | {field: value}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)
