"""A page on the internet cannot use the gateway of whoever looks at it; one that may ask is told so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from gateway.http.application import PLACEMENT
from gateway.http.limit_headers import header_names
from tests.gateway.conftest import GatewayProcess, NeuronThread

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "x"}]})
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
def test_a_body_that_a_form_could_send_is_refused(http: httpx.Client, path: str, kind: str | None) -> None:
    answer = http.post(path, content=BODY, headers={"content-type": kind} if kind else {})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "application/json" in error["message"]


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
def test_a_body_that_is_called_json_is_taken(http: httpx.Client, kind: str) -> None:
    assert http.post(CHAT, content=BODY, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health", "/nothing"])
@pytest.mark.parametrize(
    "origin", ["https://example.org", "http://localhost.example.org", "null", "http://10.0.0.1"]
)
def test_a_page_from_elsewhere_is_refused(http: httpx.Client, origin: str, path: str, method: str) -> None:
    answer = http.request(method, path, headers={"origin": origin} | PREFLIGHT, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert "gateway.cors_origins" in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1", "tauri://localhost"]
)
def test_a_page_of_this_host_may_ask_and_may_read_answers_and_errors(http: httpx.Client, origin: str) -> None:
    headers = {"origin": origin, "content-type": "application/json"}
    answers = [
        http.post(CHAT, content=BODY, headers=headers),
        http.post(CHAT, content=BODY[:-1] + ',"stream":true}', headers=headers),
        http.post(CHAT, content=b"{", headers=headers),
        http.post(CHAT, content=BODY, headers=headers | {"content-type": "text/plain"}),
        http.post(CHAT, content=b" " * 300_000, headers=headers),
        http.get("/v1/models", headers=headers),
        http.get("/v1/models/none", headers=headers),
        http.get("/health", headers=headers),
        http.get("/nothing", headers=headers),
        http.get(CHAT, headers=headers),
    ]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 415, 413, 200, 404, 200, 404, 405]


def test_a_page_may_read_every_header_that_clients_look_at(http: httpx.Client) -> None:
    read = http.get("/ready", headers={"origin": "http://localhost"}).headers["access-control-expose-headers"]
    limits = {name for what in ("requests", "tokens") for name in header_names(what)}
    others = {"x-request-id", "request-id", "retry-after", "x-should-retry", PLACEMENT}
    assert set(read.split(", ")) == limits | others


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/models/some/id", "/health", "/nothing"])
def test_a_preflight_is_answered_on_every_route(http: httpx.Client, path: str) -> None:
    answer = http.options(path, headers={"origin": "http://localhost:5173"} | PREFLIGHT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]


@pytest.mark.parametrize(
    "host", ["evil.example.org", "evil.example.org:31313", "localhost.example.org", "127.0.0.1.nip.io"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_a_name_that_somebody_pointed_here_is_refused(http: httpx.Client, host: str, path: str) -> None:
    answer = http.get(path, headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    said = answer.json()["error"]["message"]
    assert (
        f"{host.partition(':')[0]!r} is no name of this gateway; if it is one, add it to gateway.hosts"
        in said
    )


def test_nor_are_metrics_for_such_a_name(gateway: GatewayProcess) -> None:
    def asked(host: str) -> httpx.Response:
        address = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
        return httpx.get(address, headers={"host": host}, trust_env=False)

    assert asked("evil.example.org:31314").status_code == 403
    assert "cortex_" not in asked("evil.example.org").text
    assert "cortex_neuron_up" in asked("localhost:31314").text


def test_a_page_whose_name_was_pointed_here_is_not_of_our_own_origin(http: httpx.Client) -> None:
    headers = {"host": "evil.example.org:31313", "origin": "http://evil.example.org:31313"}
    assert http.post(CHAT, json=json.loads(BODY), headers=headers).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "127.0.0.1:1",
        "[::1]:31313",
        "[::1]",
        "box",
        "box.local:8",
        "a.localhost.",
        "host.docker.internal",
    ],
)
def test_names_that_nobody_can_own_are_taken(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.fixture(scope="module")
def open_gateway(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(
        tmp_path_factory.mktemp("gateway"),
        neuron.endpoint,
        cors_origins=["https://chat.example.org"],
        hosts=["API.example.org.", "bücher.example"],
    )
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def test_what_the_operator_lists_may_ask_and_nothing_else(open_gateway: GatewayProcess) -> None:
    def status(**headers: str) -> int:
        return httpx.get(f"{open_gateway.base}/v1/models", headers=headers, trust_env=False).status_code

    assert status(host="api.example.org:443", origin="https://chat.example.org") == 200
    assert status(host="api.example.org", origin="https://other.example.org") == 403
    assert status(host="other.example.org") == 403
    assert status(origin="http://localhost:3000") == 403
    assert status(origin=open_gateway.base) == 200  # its own page, by its address
    assert status(host="gateway:31313", origin="http://gateway:31313") == 200  # and by names that are ours
    assert status(host="api.example.org", origin="https://api.example.org") == 200
    assert status(host="xn--bcher-kva.example") == 200  # as browsers write it
    assert status(host="gateway:31313", origin="http://other:31313") == 403
