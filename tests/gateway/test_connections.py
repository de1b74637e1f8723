"""Connections end when they should and not before, and what is refused below HTTP's meaning is told, too."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http.connections import SLICE, Connection, Reading
from gateway.http.parser import Parser
from tests.gateway.conftest import PATIENCE, GatewayProcess, NeuronThread, eventually
from tests.gateway.raw_requests import BODY, CHUNKED, GET, LATE, POST, answer, connected, head

# Ways to have a proxy and a server disagree on where a request ends.
BAD_TRAILERS = (b"no colon", b": nothing", b"a b: c", b"a : b", b" a: b", b"a: \0", b"a: b\rc: d", b"\xe9: b")
BAD_SIZES = b"-1", b"+5", b"1_0", b"0x5", b"5 ", b" 5", b"", b"5;a\x00", b"5;a\nb", b"5\n"
BAD_LENGTHS = b"+2", b"-2", b"1_0", b"0x2", b"2, 2", b"2 2", b"", b"\xb2", b"9" * 5000, b"0" * 5000 + b"2"
BAD_FIELDS = b"x : y", b" x: y", b"x: y\r\n z", b"x: a\x00b", b"x: a\rb", b"x: a\nb: c", b": y", b"x\x00: y"
SECONDS = 2.5  # of each limit below
SILENCE = 5.0  # seconds, after which either side gives up the other
KEPT = 3  # seconds that an idle connection stays


@pytest.fixture(scope="module")
def strict(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with little patience and memory."""
    process = GatewayProcess(
        tmp_path_factory.mktemp("gateway"),
        neuron.endpoint,
        header_seconds=SECONDS,
        body_seconds=SECONDS,
        keepalive_seconds=KEPT,
        body_memory="1MiB",
    )
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def refused(client: socket.socket, status: int, code: str) -> None:
    """Its answer is that error, and the connection ends cleanly after it."""
    got, headers, body = answer(client)
    assert (got, body["error"]["code"]) == (status, code)
    assert body["error"]["message"]
    assert headers["content-type"] == "application/json"
    assert client.recv(1) == b""


# --- time -----------------------------------------------------------------------------------------------


def test_a_connection_that_sends_nothing_is_closed(strict: GatewayProcess) -> None:
    began = time.monotonic()
    with connected(strict) as client:
        assert client.recv(1) == b""
    assert SECONDS * 0.9 < time.monotonic() - began < LATE


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "later"])
def test_half_a_header_is_refused_in_time_however_it_drips(strict: GatewayProcess, before: bytes) -> None:
    with connected(strict, before) as client:
        if before:
            assert answer(client)[0] == 200
        began = time.monotonic()
        client.settimeout(0.1)
        for byte in POST:
            client.sendall(bytes((byte,)))
            try:
                assert client.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                continue
        client.settimeout(PATIENCE)
        refused(client, 408, "request_timeout")
    assert SECONDS * 0.9 < time.monotonic() - began < LATE


@pytest.mark.parametrize(
    "framing", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n5\r\n{"]
)
def test_half_a_body_is_refused_in_time(strict: GatewayProcess, framing: bytes) -> None:
    began = time.monotonic()
    with connected(strict, POST + framing) as client:
        assert answer(client)[2]["error"]["code"] == "request_timeout"
    assert time.monotonic() - began > SECONDS * 0.9


def test_a_pause_is_not_the_end_of_a_body() -> None:
    class Receiver:
        """gunicorn's, that waited for as long as it does."""

        expect_continue, _body_wait_expired = False, False
        events = ["http.disconnect", "http.disconnect", "http.request"]

        async def receive(self) -> dict[str, Any]:
            kind = self.events.pop(0)
            self._body_wait_expired = kind == "http.disconnect"
            return {"type": kind}

    assert asyncio.run(Reading(SimpleNamespace(_body_receiver=Receiver()), {}).receive()) == {
        "type": "http.request"
    }


EXPECTING = b"content-length: %d\r\nexpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (POST + EXPECTING % (1 << 40), 413),
        (POST.replace(b"json", b"xml") + EXPECTING % 5, 415),
        (POST.replace(b"/v1/", b"/v9/") + EXPECTING % 5, 404),
    ],
)
def test_who_asks_before_it_sends_a_body_is_refused_without_one(
    gateway: GatewayProcess, start: bytes, status: int
) -> None:
    with connected(gateway, start) as client:
        assert answer(client)[0] == status
        assert client.recv(1) == b""


def test_who_asks_before_it_sends_a_body_is_told_to_go_on(gateway: GatewayProcess) -> None:
    with connected(gateway, POST + EXPECTING % len(BODY)) as client:
        told = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.recv(len(told), socket.MSG_WAITALL) == told
        client.sendall(BODY)
        assert answer(client)[0] == 200
        client.sendall(GET)
        assert answer(client)[0] == 200


def test_half_a_header_that_came_with_the_last_request_is_refused_in_time(strict: GatewayProcess) -> None:
    began = time.monotonic()
    with connected(strict, GET + POST) as client:
        assert answer(client)[0] == 200
        refused(client, 408, "request_timeout")
    assert SECONDS * 0.9 < time.monotonic() - began < LATE


def test_a_header_that_is_too_long_is_refused_whatever_came_before_it(gateway: GatewayProcess) -> None:
    long = b"GET /ready HTTP/1.1\r\n" + b"x: %s\r\n" % (b"y" * 9000) * 9
    with connected(gateway, GET + long) as client:
        assert answer(client)[0] == 200
        refused(client, 431, "header_too_large")


def test_an_idle_connection_serves_again_until_its_time_is_over(strict: GatewayProcess) -> None:
    with connected(strict, GET) as client:
        assert answer(client)[0] == 200
        time.sleep(KEPT - 1.2)
        client.sendall(GET[:-2])
        time.sleep(1.3)  # over the time at which it would have been closed
        began = time.monotonic()
        client.sendall(GET[-2:])
        assert answer(client)[0] == 200
        assert client.recv(1) == b""
        assert KEPT * 0.9 < time.monotonic() - began < LATE


@pytest.mark.parametrize("kept", [b"", b"connection: keep-alive\r\n"])
def test_a_stream_over_http_1_0_ends_with_its_connection(gateway: GatewayProcess, kept: bytes) -> None:
    body = BODY[:-1] + b',"stream":true}'
    request = head(len(body)).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + kept)
    with connected(gateway, request + body) as client:
        told = b"".join(iter(lambda: client.recv(1 << 16), b""))
    fields, _, events = told.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in fields
    assert b"chunked" not in fields
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("seconds", [1.2 * KEPT, SILENCE + 1.5])
def test_a_request_that_waits_in_the_socket_while_the_process_stands_still_is_answered(
    strict: GatewayProcess, seconds: float
) -> None:
    """Though its connection may stay no longer, and the neuron gave up the silent process meanwhile."""
    (worker,) = strict.wait_ready().workers()
    with connected(strict, GET) as client:
        assert answer(client)[0] == 200
        try:
            os.kill(worker, signal.SIGSTOP)  # a process that is too busy to read
            client.sendall(head(len(BODY)) + BODY)
            time.sleep(seconds)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert answer(client)[0] == 200


def test_a_connection_that_was_aborted_has_nothing_unread() -> None:
    async def scenario() -> None:
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1") as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            connection = Connection.__new__(Connection)
            connection.transport = writer.transport
            writer.transport.abort()
            await asyncio.sleep(0)
            assert not connection._has_unread()

    asyncio.run(scenario())


# --- size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "request_line_too_long"),
        (b"GET /ready HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 20_000 + b"\r\n\r\n", 431, "header_too_large"),
        (b"GET /ready HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 101 + b"\r\n", 431, "header_too_large"),
        (b"GET /ready HTTP/1.1\r\n" + b"x: %s\r\n" % (b"y" * 9000) * 9, 431, "header_too_large"),
        (b"nonsense\r\n\r\n", 400, "http_error"),
        (b"GET /ready HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", 400, "http_error"),
        (b"GET /ready HTTP/1.1\r\nhost: x\r\ncontent-length: one\r\n\r\n", 400, "http_error"),
        (POST + b"transfer-encoding: gzip\r\n\r\n", 400, "http_error"),
        (CHUNKED + b"hello\r\n", 400, "http_error"),
        (CHUNKED + b"2\r\n{}2\r\n", 400, "http_error"),
        *[(CHUNKED + size + b"\r\n{", 400, "http_error") for size in BAD_SIZES],
        (CHUNKED + b"0" * 1_000_000, 400, "http_error"),
        (CHUNKED + b"5;a=" + b"b" * 1_000_000, 400, "http_error"),
        (CHUNKED + b"%x\r\n{" % (1 << 72), 413, "request_too_large"),
        (CHUNKED + b"3ffff\r\n" + b" " * 0x3FFFF + b"\r\n1fffff\r\n", 413, "request_too_large"),
        (CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 200, 431, "header_too_large"),
        (CHUNKED + b"2\r\n{}\r\n0\r\nx: " + b"y" * 20_000, 431, "header_too_large"),
        (CHUNKED + b"2\r\n{}\r\n0\r\ncontent-length: 5\r\n\r\n", 400, "http_error"),
        *[
            (CHUNKED + b"2\r\n{}\r\n0\r\na: b\r\n" + line + b"\r\n\r\n", 400, "http_error")
            for line in BAD_TRAILERS
        ],
        *[(POST + b"content-length: " + length + b"\r\n\r\n{}", 400, "http_error") for length in BAD_LENGTHS],
        (POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", 400, "http_error"),
        (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400, "http_error"),
        (POST + b"content-length: 300000\r\n\r\n{", 413, "request_too_large"),
        *[(GET[:-2] + field + b"\r\n\r\n", 400, "http_error") for field in BAD_FIELDS],
        *[(GET.replace(b" x", b" " + host), 400, "http_error") for host in (b"a b", b"a, b", b"a@b", b"a/b")],
        (GET.replace(b"\r\n", b"\n"), 400, "http_error"),
        (b"\x16\x03\x01\0\xa5\x01\0\0\xa1\x03\x03" + bytes(32), 400, "http_error"),  # TLS
    ],
)
@pytest.mark.parametrize("more", [0, 1 << 20])
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "later"])
def test_what_is_no_http_is_refused_in_the_envelope_and_closed_cleanly(
    gateway: GatewayProcess, before: bytes, sent: bytes, status: int, code: str, more: int
) -> None:
    with connected(gateway, before) as client:
        if before:
            assert answer(client)[0] == 200
        client.sendall(sent + b"x" * more)
        refused(client, status, code)


def test_what_is_no_http_is_refused_in_the_words_of_who_asks(gateway: GatewayProcess) -> None:
    asked = CHUNKED.replace(b"\r\n", b"\r\nanthropic-version: 2023-06-01\r\n", 1) + b"7fffffff\r\n"
    with connected(gateway, asked) as client:
        status, _, body = answer(client)
        assert (status, body["type"], body["error"]["type"]) == (413, "error", "request_too_large")


def test_of_a_body_that_is_refused_on_its_way_nothing_is_served(
    gateway: GatewayProcess, neuron: NeuronThread
) -> None:
    before = len(neuron.neuron.served)
    named = CHUNKED.replace(b"\r\n", b"\r\nx-request-id: cut-short\r\n", 1)
    with connected(gateway, named + b"%x\r\n%s\r\n" % (len(BODY), BODY)) as client:
        time.sleep(0.1)
        client.sendall(b"7fffffff\r\n")
        refused(client, 413, "request_too_large")
    with connected(gateway, POST + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)) as client:
        assert answer(client)[0] == 200
    assert len(neuron.neuron.served) == before + 1

    def told() -> list[str]:
        return [line for line in gateway.log.read_text().splitlines() if "cut-short" in line]

    [line] = eventually(told, "the log has it")
    assert "status=413 reason=request_too_large" in line


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("first", "then", "status", "path"),
    [
        (CHUNKED + b"2\r\n{}\r\nx\r\n", b"", 400, "/v1/completions"),
        (CHUNKED + b"2\r\n{}\r\n", b"x\r\n", 400, "/v1/completions"),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"no field\r\n\r\n", 400, "/v1/completions"),
        (CHUNKED + b"7fffffff\r\n", b"", 413, "/v1/completions"),
        (CHUNKED, b"7fffffff\r\n", 413, "/v1/completions"),
        (b"POST /v1/no-such-thing HTTP/1.1\r\n%b?x: y\r\n\r\n", b"", 400, "/v1/no-such-thing"),
    ],
)
def test_what_is_refused_on_its_way_is_told_once_in_the_log_and_the_client_is_told_its_name(
    gateway: GatewayProcess, first: bytes, then: bytes, status: int, path: str, named: bool
) -> None:
    own = f"own-{time.monotonic_ns()}"
    name = b"x-request-id: %b\r\n" % own.encode() if named else b""
    first = first.replace(b"%b", name) if b"%b" in first else first.replace(b"\r\n", b"\r\n" + name, 1)
    with connected(gateway, first) as client:
        if then:
            time.sleep(0.1)
            client.sendall(then)
        code, headers, _ = answer(client)
    told = headers["x-request-id"]
    assert (code, headers["request-id"], told == own) == (status, told, named)
    with connected(gateway, GET) as client:
        assert answer(client)[0] == 200  # by now the application has said what it has to

    def lines() -> list[str]:
        return [line for line in gateway.log.read_text().splitlines() if f"request_id={told} " in line]

    [line] = eventually(lines, "the log has it")
    assert f"request refused request_id={told} method=POST path={path!r} status={status} reason=" in line


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_within_its_body_is_one_line(gateway: GatewayProcess, reset: bool) -> None:
    own = f"own-{time.monotonic_ns()}"
    first = CHUNKED.replace(b"\r\n", b"\r\nx-request-id: %b\r\n" % own.encode(), 1)
    with connected(gateway, first + b"2\r\n{") as client:
        time.sleep(0.1)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def lines() -> list[str]:
        return [line for line in gateway.log.read_text().splitlines() if own in line]

    eventually(lines, "the log has it")
    with connected(gateway, GET) as client:
        assert answer(client)[0] == 200
    [line] = lines()
    assert "status=408" in line


def test_fields_behind_a_body_are_read_over(gateway: GatewayProcess) -> None:
    body = b"%x\r\n%b\r\n0\r\nx-sum: 1\r\nempty:\r\n\r\n" % (len(BODY), BODY)
    with connected(gateway, CHUNKED + body + GET) as client:
        assert [answer(client)[0] for _ in range(2)] == [200] * 2


def test_a_body_in_very_small_chunks_is_read_and_what_follows_it_too(gateway: GatewayProcess) -> None:
    body = BODY + b" " * 100_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(gateway, (CHUNKED + chunks) * 2 + GET) as client:
        assert [answer(client)[0] for _ in range(3)] == [200] * 3


def test_a_turn_of_the_loop_parses_little_of_what_is_in_chunks() -> None:
    fed: list[int] = []

    class Recorder(Parser):
        def feed(self, data: bytes) -> None:
            fed.append(len(data))
            super().feed(data)

    async def scenario() -> None:
        cfg, log = SimpleNamespace(pre_request=None), SimpleNamespace(access_log_enabled=False)
        loop, limit = asyncio.get_running_loop(), 1 << 20
        worker = SimpleNamespace(cfg=cfg, log=log, asgi=None, loop=loop, body_limit=limit, body_seconds=60)
        connection = Connection(worker)
        connection._callback_parser = Recorder(on_body=connection._on_body)
        connection._request_ready = asyncio.Event()
        connection._request_ready.set()
        connection.data_received(CHUNKED + b"1\r\n{\r\n" * 40_000)
        turns = 0
        while connection._unparsed:
            assert len(fed) == turns + 1
            await asyncio.sleep(0)
            turns += 1

    asyncio.run(scenario())
    assert sum(fed) == len(CHUNKED) + 240_000
    assert max(fed) == SLICE


def test_a_refused_client_may_go_on_sending_and_reads_why(gateway: GatewayProcess) -> None:
    with connected(gateway, b"nonsense\r\n\r\n") as client:
        client.recv(1, socket.MSG_PEEK)  # it is refused
        for _ in range(3):  # to a socket that was closed, the second would fail
            client.sendall(b"x" * 100_000)
        refused(client, 400, "http_error")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n%s\r\n", 414),
        (b"GET /ready HTTP/1.1\r\n%sx: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /ready HTTP/1.1\r\n" + b"x: y\r\n" * 101 + b"%s\r\n", 431),
        (b"GET /ready HTTP/1.1\r\n%sno colon\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n%s\r\nhello\r\n", 400),
    ],
)
def test_a_page_that_may_ask_reads_why_its_request_is_no_http(
    gateway: GatewayProcess, sent: bytes, status: int
) -> None:
    pages = {
        b"Host: x\r\nOrigin: http://localhost:3000\r\n": "http://localhost:3000",
        b"host: x\r\norigin: https://example.org\r\n": None,
        b"host: example.org\r\norigin: http://localhost:3000\r\n": None,
    }
    for page, origin in pages.items():
        with connected(gateway, sent.replace(b"%s", page)) as client:
            code, headers, _ = answer(client)
        assert (code, headers.get("access-control-allow-origin")) == (status, origin)
        assert ("retry-after" in headers.get("access-control-expose-headers", "")) == (origin is not None)


def test_an_address_in_full_is_answered_as_its_path_and_a_page_cannot_hide_its_host_behind_one(
    gateway: GatewayProcess,
) -> None:
    for address, host, status in (
        (b"http://localhost/v1/models", b"x", 200),
        (b"http://localhost/v1/models", b"example.org", 200),
        (b"http://example.org/v1/models", b"localhost", 403),
        (b"http://localhost/v1/no-such-thing", b"x", 404),
    ):
        with connected(gateway, b"GET %s HTTP/1.1\r\nhost: %s\r\n\r\n" % (address, host)) as client:
            assert answer(client)[0] == status
    with connected(gateway, b"GET /v1/models HTTP/1.1\r\n\r\n") as client:
        refused(client, 400, "http_error")
    with connected(gateway, b"GET /v1/models HTTP/1.0\r\n\r\n") as client:
        assert answer(client)[0] == 200


def test_a_header_of_a_page_with_many_cookies_is_taken(gateway: GatewayProcess) -> None:
    with connected(gateway, GET[:-2] + b"cookie: " + b"c" * 16_000 + b"\r\n\r\n") as client:
        assert answer(client)[0] == 200


def test_a_client_that_does_not_read_is_given_up(strict: GatewayProcess) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", strict.port))
        ends = f":{strict.port:04X}", f":{client.getsockname()[1]:04X}"

        def is_served() -> bool:
            lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
            states = [state for _, ours, theirs, state, *_ in lines if (ours[-5:], theirs[-5:]) == ends]
            return states == ["01"]  # established

        eventually(is_served, "the connection is there")
        client.sendall(GET.replace(b"/ready", b"/openapi.json") * 500)
        eventually(lambda: not is_served(), "the connection is given up")


def test_bodies_that_are_held_at_once_have_a_bound(strict: GatewayProcess) -> None:
    part = b'"' + b" " * 199_999

    with ExitStack() as stack:
        for _ in range(2):  # 400 of 1,024 KiB
            stack.enter_context(connected(strict, head(250_000) + part))
        refusals = []

        def busy() -> bool:
            with connected(strict, head(len(part)) + part) as client:
                refusals.append(answer(client))
            return refusals[-1][0] == 503

        eventually(busy, "a third body is refused while two are held, for it would be more than is left")
        other = head(len(part)).replace(b"\r\n", b"\r\nauthorization: Bearer another\r\n", 1)
        with connected(strict, other + part) as client:  # no JSON, but read
            assert answer(client)[0] == 400
    _, headers, body = refusals[-1]
    assert body["error"]["code"] == "gateway_busy"
    assert int(headers["retry-after"]) >= 1
    with connected(strict, head(len(part)) + part) as client:
        eventually(lambda: answer(client)[0] == 400, "their memory is free again when they are gone")
