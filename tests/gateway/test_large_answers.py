"""Large answers are written and sent in pieces, and are what they would be in one."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import falcon.asgi
import msgspec
import pytest

from gateway.dialects import Renderer
from gateway.dialects.large import MOST, PIECE, Large, batches, pieces, put, written
from gateway.dialects.openai import chat, completions
from ipc.messages.answers import Alternative, Choice, Timings, TokenLogprob, Usage
from ipc.messages.replies import Finished, Started
from tests.gateway.conftest import PATIENCE, GatewayProcess, NeuronThread, eventually
from tests.gateway.fake_neuron import LONG
from tests.gateway.parsing import USER, parsed

SECONDS = 2.5  # that a client may take nothing
WORD = "x" * LONG
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
GET = b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n"


# --- writing --------------------------------------------------------------------------------------------


class Answer(msgspec.Struct):
    few: Any
    between: str
    many: Any


@pytest.mark.parametrize("many", [0, 1, 3, 2500, 90_000])
@pytest.mark.parametrize("few", [0, 1, 2])
def test_lists_are_what_they_are_in_one(few: int, many: int) -> None:
    def answer(listed: Any) -> Answer:
        return Answer(listed(["\0ä"] * few), "[]\0", [{"a": listed([])}, listed(list(range(many)))])

    told = pieces(answer(lambda values: Large(map(msgspec.json.encode, values))))
    assert b"".join(told) == msgspec.json.encode(answer(list))
    assert b"".join(pieces(answer(lambda values: Large(batches(values))))) == b"".join(told)
    assert all(len(each) <= PIECE for each in told)
    assert all(len(one) + len(next_one) > PIECE for one, next_one in pairwise(told))


def test_an_entry_that_is_large_by_itself_is_a_piece() -> None:
    long = msgspec.json.encode("x" * 3 * PIECE)
    assert pieces(Large([b"1", long, b"2"])) == [b"[1,", long, b",2]"]


def test_only_a_large_answer_is_in_pieces() -> None:
    assert written({"a": Large([b"1"])}) == b'{"a":[1]}'
    assert isinstance(written({"a": Large(batches(range(PIECE)))}), list)


TOP = [Alternative(token_id=number, token="ab", raw=b"ab", logprob=-1.0) for number in range(20)]
ENTRIES = [
    TokenLogprob(token_id=number, token=f"<{number}>", raw=b"<>", logprob=-1.0, top=TOP)
    for number in range(300)
]


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (chat, {"messages": [USER], "n": 2, "logprobs": True, "top_logprobs": 20, "prompt_logprobs": 20}),
        (completions, {"prompt": "a", "n": 2, "logprobs": 20, "prompt_logprobs": 20}),
    ],
)
def test_log_probabilities_are_never_copied_as_a_whole(dialect: Any, fields: dict[str, Any]) -> None:
    renderer: Renderer = parsed(dialect.parse, json.dumps({"model": "m"} | fields).encode())[1]
    choices = [Choice(reason="stop", index=index, text="ab", logprobs=ENTRIES) for index in range(2)]
    finished = Finished(id=1, choices=choices, usage=Usage(), timings=Timings(), prompt_logprobs=[ENTRIES])
    told = renderer.whole(Started(id=1, prompt_tokens=1), finished)
    assert isinstance(told, list)
    assert max(map(len, told)) <= PIECE
    assert b"".join(told).count(b"<299>") >= 3
    assert [choice["index"] for choice in json.loads(b"".join(told))["choices"]] == [0, 1]


# --- sending --------------------------------------------------------------------------------------------


def answered(body: bytes | list[bytes]) -> falcon.asgi.Response:
    resp = falcon.asgi.Response()
    put(resp, body)
    return resp


def test_what_is_small_is_sent_in_one() -> None:
    for body in (b"x" * MOST, [b"x" * (MOST - 1), b"x"]):
        resp = answered(body)
        assert (resp.data, resp.stream) == (b"x" * MOST, None)


def test_what_is_large_goes_piece_by_piece_and_nothing_is_held_of_what_is_gone() -> None:
    body = [b"a" * PIECE, b"b" * (2 * MOST + 1), b"c" * PIECE]
    resp = answered(body)
    assert (resp.data, resp.content_length) == (None, str(2 * PIECE + 2 * MOST + 1))

    async def told() -> list[tuple[int, int]]:
        return [(len(piece), len(body)) async for piece in resp.stream]

    assert asyncio.run(told()) == [(PIECE, 2), (MOST, 1), (MOST, 1), (1, 1), (PIECE, 0)]


@pytest.fixture(scope="module")
def patient(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with little patience for clients that do not read."""
    folder = tmp_path_factory.mktemp("gateway")
    process = GatewayProcess(folder, neuron.endpoint, body_seconds=SECONDS)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def asked(gateway: GatewayProcess, version: bytes = b"1.1") -> socket.socket:
    """A client that takes little at once, and has asked for an answer of 4 MB."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", gateway.port))
    body = json.dumps({"model": "long", "prompt": "a"}).encode()
    client.sendall(
        POST.replace(b"HTTP/1.1", b"HTTP/" + version) + b"content-length: %d\r\n\r\n" % len(body) + body
    )
    return client


def more(client: socket.socket, most: int = 1 << 16) -> bytes:
    data = client.recv(most)
    assert data, "it ends too early"
    return data


def taken(client: socket.socket, pause: float = 0.0) -> tuple[bytes, bytes]:
    """The header and the body of an answer, of which a tenth is read between two pauses."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += more(client)
    fields, _, body = got.partition(b"\r\n\r\n")
    (length,) = [
        int(line[16:]) for line in fields.split(b"\r\n") if line.lower().startswith(b"content-length")
    ]
    body = bytearray(body)
    for tenth in range(1, 11):
        while len(body) < length * tenth // 10:
            body += more(client, length * tenth // 10 - len(body))
        time.sleep(pause)
    return fields, bytes(body)


def test_a_client_that_reads_slowly_gets_all_of_it_and_its_connection_stays(patient: GatewayProcess) -> None:
    with asked(patient) as client:
        began = time.monotonic()
        fields, body = taken(client, 1.5 * SECONDS / 10)
        assert time.monotonic() - began > SECONDS
        assert json.loads(body)["choices"][0]["text"] == WORD
        assert b"chunked" not in fields
        client.sendall(GET)
        assert taken(client)[0].startswith(b"HTTP/1.1 200")


def test_a_large_answer_over_http_1_0_ends_with_its_connection(patient: GatewayProcess) -> None:
    with asked(patient, b"1.0") as client:
        fields, body = taken(client)
        assert json.loads(body)["choices"][0]["text"] == WORD
        assert b"\r\nConnection: close" in fields
        assert client.recv(1) == b""


def test_a_client_that_takes_none_of_it_is_given_up(patient: GatewayProcess) -> None:
    with asked(patient) as client:
        ours = client.getsockname()[1]
        log = patient.log

        def is_over() -> bool:
            with open("/proc/net/tcp") as table:
                return not any(f":{patient.port:04X} 0100007F:{ours:04X} 01" in line for line in table)

        eventually(lambda: "request ended" in log.read_text(), "it is answered")
        eventually(is_over, "the connection is given up")
