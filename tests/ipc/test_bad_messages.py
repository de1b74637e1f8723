"""What is no request of this protocol gets one typed error, and harms neither the server nor another peer."""

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import Code, CortexError
from ipc.messages.framing import HEADER, PROTOCOL_MAJOR
from ipc.messages.replies import AnyReply, Failed
from ipc.messages.requests import AnyRequest, Generate, ListModels
from ipc.server import Server, _bodies
from tests.ipc.one_of_each import ONE_OF_EACH
from tests.ipc.serving import SECONDS, RawClient, serving


def body(**fields):
    return msgspec.msgpack.encode(fields)


BAD = {
    "one frame": ([b"hello"], 0, Code.BAD_FRAME, None),
    "an empty frame": ([b""], 0, Code.BAD_FRAME, None),
    "two frames": ([HEADER, body(verb="health", id=1)], 0, Code.BAD_FRAME, None),
    "three frames": ([HEADER + body(verb="health", id=1), b"", b""], 0, Code.BAD_FRAME, None),
    "very many frames": ([b"x"] * 1000, 0, Code.BAD_FRAME, None),
    "wrong header": ([b"HTTP" + body(verb="health", id=1)], 0, Code.BAD_FRAME, None),
    "short header": ([b"cx"], 0, Code.BAD_FRAME, None),
    "other major version": (
        [b"cx" + bytes((PROTOCOL_MAJOR + 1, 0)) + body(verb="health", id=1)],
        0,
        Code.PROTOCOL_MISMATCH,
        None,
    ),
    "truncated body": ([HEADER + body(verb="load", id=1, model="demo")[:-3]], 0, Code.BAD_FRAME, None),
    "trailing bytes": ([HEADER + body(verb="health", id=1) + b"\x00"], 0, Code.BAD_FRAME, None),
    "no map": ([HEADER + msgspec.msgpack.encode("health")], 0, Code.BAD_FRAME, None),
    "an array of no map": ([HEADER + msgspec.msgpack.encode([1])], 0, Code.BAD_FRAME, None),
    "a long array": ([HEADER + msgspec.msgpack.encode([None] * 300)], 0, Code.BAD_FRAME, None),
    "a large array": ([HEADER + msgspec.msgpack.encode([bytes(100_000)])], 0, Code.BAD_FRAME, None),
    "not utf-8": (
        [HEADER + body(verb="load", id=1, model="xyz").replace(b"xyz", b"\xff\xfe\xfd")],
        1,
        Code.BAD_REQUEST,
        None,
    ),
    "an array of four billion": (
        [HEADER + b"\x82\xa2id\x01\xa4verb\xdd\xff\xff\xff\xff"],
        0,
        Code.BAD_FRAME,
        None,
    ),
    "nested too deep": ([HEADER + b"\x91" * 100_000], 0, Code.BAD_FRAME, None),
    "nested too deep in a field": (
        [HEADER + b"\x82\xa4verb\xa6health\xa5extra" + b"\x91" * 60_000 + b"\xc0"],
        0,
        Code.BAD_FRAME,
        None,
    ),
    "nested too deep in a field of a large body": (
        [HEADER + b"\x83\xa4verb\xa6health\xa2id\x07\xa5extra" + b"\x91" * 100_000 + b"\xc0"],
        7,
        Code.BAD_REQUEST,
        None,
    ),
    "id is text": ([HEADER + body(verb="health", id="1")], 0, Code.BAD_FRAME, None),
    "id is missing": ([HEADER + body(verb="health")], 0, Code.BAD_REQUEST, None),
    "id is 0": ([HEADER + body(verb="health", id=0)], 0, Code.BAD_REQUEST, "id"),
    "id is negative": ([HEADER + body(verb="health", id=-1)], 0, Code.BAD_REQUEST, "id"),
    "unknown verb": ([HEADER + body(verb="dance", id=7)], 7, Code.UNKNOWN_VERB, None),
    "no verb": ([HEADER + body(id=7)], 7, Code.UNKNOWN_VERB, None),
    "missing field": ([HEADER + body(verb="load", id=7)], 7, Code.BAD_REQUEST, None),
    "wrong type": ([HEADER + body(verb="load", id=7, model=3)], 7, Code.BAD_REQUEST, "model"),
    "wrong type deep inside": (
        [HEADER + body(verb="generate", id=7, model="m", messages=[{"role": "king"}])],
        7,
        Code.BAD_REQUEST,
        "messages[0].role",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_gets_one_clear_error_and_harms_nobody(name):
    frames, number, code, param = BAD[name]

    async def main():
        async with serving(clients=2) as (_, desk, client, other):
            await other.send(Generate(id=7, model="m"))
            peer, _ = await desk.next()
            await client.socket.send_multipart(frames)
            reply = await client.receive()
            assert isinstance(reply, Failed)
            assert (reply.id, reply.param) == (number, param)
            assert reply.code == code
            assert reply.message
            assert await client.quiet()
            assert await other.quiet()
            assert peer.holds(7)

    asyncio.run(main())


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.just(HEADER),
            st.builds(
                lambda request, cut, noise: HEADER + msgspec.msgpack.encode(request)[:cut] + noise,
                st.sampled_from(ONE_OF_EACH),
                st.integers(0, 200),
                st.binary(max_size=4),
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_frames_are_a_request_or_a_typed_error(frames):
    server = Server("tcp://127.0.0.1:0", lambda peer, request: None, lambda peer: None)
    with contextlib.suppress(CortexError):
        for body in _bodies([b"\0peer", *frames]):
            with contextlib.suppress(CortexError):
                assert isinstance(server._read(b"\0peer", body), AnyRequest)


def test_a_client_of_protocol_1_is_refused_in_the_two_frames_that_it_understands():
    async def main():
        async with serving() as (_, _desk, client):
            request = msgspec.msgpack.encode(ListModels(id=1))
            await client.socket.send_multipart([b"cx\x01\x00", request])
            header, body = await asyncio.wait_for(client.socket.recv_multipart(), SECONDS)
            assert header == HEADER
            [refusal] = msgspec.msgpack.decode(body, type=list[AnyReply])
            assert (refusal.id, refusal.code) == (0, Code.PROTOCOL_MISMATCH)
            assert "1.0" in refusal.message

    asyncio.run(main())


def test_a_connection_that_brings_its_own_name_is_refused_and_no_work_is_done_for_it():
    async def main():
        async with serving(clients=0) as (server, desk):
            named = RawClient(server.endpoint, routing_id=b"again")
            await named.send(Generate(id=1, model="m"))
            refusal = await named.receive()
            assert (refusal.id, refusal.code) == (1, Code.BAD_REQUEST)
            assert "ZMQ_ROUTING_ID" in refusal.message
            named.close()
            assert desk.requests == []
            assert server._peers == {}

    asyncio.run(main())
