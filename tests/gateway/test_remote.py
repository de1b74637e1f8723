"""How commands ask a gateway: whose key they show to whom, and what they say of what is no gateway."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gateway.commands import remote
from gateway.commands.clients import KEY_VARIABLE

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    servers = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            do_POST = do_GET

            def log_message(self, *args: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def says(body: bytes, length: int | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body)

    return answer


def test_a_key_is_not_handed_on_to_where_an_answer_leads(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        says(b"{}")(request)

    target = serve(elsewhere)

    def here(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        request.send_response(302)
        request.send_header("Location", f"{target}/health")
        request.end_headers()

    monkeypatch.setenv(KEY_VARIABLE, "sk-cortex-secret")
    assert remote.fetch(serve(here)) == b"{}"
    assert seen == ["Bearer sk-cortex-secret", None]


def test_a_key_with_the_end_of_its_line_is_a_key(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-cortex-secret\n")
    endpoint = serve(lambda request: says(request.headers["Authorization"].encode())(request))
    assert remote.fetch(endpoint) == b"Bearer sk-cortex-secret"


@pytest.mark.parametrize("key", ["sk-cortex-sec\nret", "sk-cortex-secrét", "“sk-cortex-secret”"])
def test_what_is_no_key_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(remote.Unreachable, match=KEY_VARIABLE) as caught:
        remote.fetch("http://127.0.0.1:1")
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["beast", "127.0.0.1:31313", "http://", "http://[::1", "file:///etc", "ftp://beast"]
)
def test_what_is_no_address_is_told_and_not_opened(endpoint: str) -> None:
    for ask in (
        lambda: remote.fetch(endpoint),
        lambda: remote.post(endpoint, "/admin/models/unload", {}),
        lambda: list(remote.follow(endpoint, "/admin/models/load", {})),
    ):
        with pytest.raises(remote.Unreachable, match="--endpoint: Expected an address") as caught:
            ask()
        assert repr(endpoint) in str(caught.value)
    with pytest.raises(remote.Unreachable, match="--url: Expected an address"):
        remote.fetch(endpoint, "/v1/models", "--url")


@pytest.mark.parametrize("body", [b"<html>", b"\xff"])
def test_what_is_no_gateway_is_told(serve: Callable[[Answer], str], body: bytes) -> None:
    endpoint = serve(says(body))
    with pytest.raises(remote.Unreachable, match="is no gateway"):
        remote.post(endpoint, "/admin/models/unload", {})
    with pytest.raises(remote.Unreachable, match="is no gateway"):
        list(remote.follow(endpoint, "/admin/models/load", {}))
    with pytest.raises(remote.Unreachable, match="is no gateway"):
        list(remote.events(serve(says(b"data: " + body)), "/v1/chat/completions", {}))


def test_a_gateway_that_goes_in_the_middle_of_its_answer_is_told(serve: Callable[[Answer], str]) -> None:
    endpoint = serve(says(b"{", length=9))
    with pytest.raises(remote.Unreachable, match="is gone"):
        remote.fetch(endpoint)
    with pytest.raises(remote.Unreachable, match="is gone"):
        remote.post(endpoint, "/admin/models/unload", {})
