"""The server: each request gets exactly one terminal reply, and no peer can harm it or another peer."""

import asyncio
import contextlib
import signal
import socket
import subprocess

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import server as server_module
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.conversation import Message, Tool
from ipc.messages.framing import HEADER, PROTOCOL_MAJOR
from ipc.messages.replies import (
    AnyReply,
    Cancelled,
    Delta,
    Done,
    Failed,
    Finished,
    Heartbeat,
    State,
    TokenCount,
)
from ipc.messages.requests import (
    AnyRequest,
    CachedPages,
    Cancel,
    CheckCatalogue,
    CountTokens,
    Detokenize,
    Discover,
    Drain,
    Embed,
    Eviction,
    Generate,
    Health,
    Hello,
    ListModels,
    Load,
    Logs,
    Pin,
    Quote,
    Rerank,
    Resume,
    SetCatalogue,
    Tokenize,
    Unload,
    Watch,
)
from ipc.messages.sampling import Sampling
from ipc.server import Server, _bodies

SECONDS = 60  # how long a test waits for what must come

ONE_OF_EACH = [
    Hello(id=1, client="test", eviction=Eviction(strategy="priority", defrag_after_cycles=3)),
    Discover(id=2),
    Health(id=3),
    Watch(id=4),
    ListModels(id=5),
    Load(id=6, model="demo"),
    Unload(id=7, model="demo", force=True),
    Generate(
        id=8,
        model="demo",
        messages=[Message(role="user", content="héllo")],
        tools=[Tool.function(name="f", parameters={"type": "object"})],
        template_args={"enable_thinking": True},
        sampling=Sampling(temperature=0.5, seed=(1 << 64) - 1, stop=["x"]),
        stream=True,
    ),
    Generate(id=9, model="demo", prompt=[1, 2, 3], return_token_ids=True),
    Generate(id=14, model="demo", prompt=["a", [1, 2]]),
    CountTokens(id=10, model="demo", prompt="hello"),
    Tokenize(id=16, model="demo", prompt="hello", return_bytes=True),
    Detokenize(id=17, model="demo", token_ids=[1, 2]),
    Embed(id=11, model="demo", input=["a", "b"]),
    Rerank(id=18, model="demo", input=["a", "b"], query="c"),
    CachedPages(id=13, model="m"),
    Quote(id=15, model="m"),
    Pin(id=19, model="m", pinned=False),
    SetCatalogue(id=20, catalogue=FleetCatalogue(version="1", origin="here", modified=1.5)),
    CheckCatalogue(id=21, catalogue=FleetCatalogue(version="1", origin="here", modified=1.5)),
    Logs(id=22, lines=5, request="r", follow=True),
    Drain(id=12, model="m"),
    Resume(id=(1 << 64) - 1),
]


class RawClient:
    """A DEALER that speaks frames, as a client in another language would."""

    def __init__(self, endpoint, **options):
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(endpoint)
        self.replies = []
        self.messages = 0

    async def send(self, *requests):
        for request in requests:
            await self.socket.send(HEADER + msgspec.msgpack.encode(request))

    async def receive(self):
        """The next reply."""
        while not self.replies:
            message = await asyncio.wait_for(self.socket.recv(), SECONDS)
            assert message.startswith(HEADER)
            self.messages += 1
            self.replies += msgspec.msgpack.decode(message[len(HEADER) :], type=list[AnyReply])
        return self.replies.pop(0)

    async def quiet(self):
        """Whether nothing came that was not asked for: the reply to a last request comes next."""
        await self.send(ListModels(id=999))
        reply = await self.receive()
        return reply.id == 999

    def close(self):
        self.context.destroy(linger=0)


class Desk:
    """A server whose handler notes what it gets; `ListModels` is answered at once, others by the test."""

    def __init__(self):
        self.requests = []
        self.gone = []
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()

    def handle(self, peer, request):
        self.requests.append((peer, request))
        self.arrived.set()
        if isinstance(request, ListModels):
            peer.send(Done(id=request.id))

    def on_gone(self, peer):
        self.gone.append(peer)
        self.left.set()

    async def next(self):
        while not self.requests:
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), SECONDS)
        return self.requests.pop(0)


@contextlib.asynccontextmanager
async def serving(handler=None, clients=1, **options):
    """(server, desk, *raw clients)"""
    desk = Desk()
    server = Server("tcp://127.0.0.1:0", handler or desk.handle, desk.on_gone, **options)
    server.start()
    raw = [RawClient(server.endpoint) for _ in range(clients)]
    try:
        yield server, desk, *raw
    finally:
        for client in raw:
            client.close()
        server.close()


def finished(number, text=""):
    return Finished(id=number, choices=[Choice(reason="stop", text=text)], usage=Usage(), timings=Timings())


def test_every_verb_reaches_the_handler_as_it_was_sent():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(*ONE_OF_EACH)
            for request in ONE_OF_EACH:
                assert (await desk.next())[1] == request
        verbs = {request.__struct_config__.tag for request in AnyRequest.__args__}
        assert {request.__struct_config__.tag for request in ONE_OF_EACH} == verbs - {"cancel"}

    asyncio.run(main())


def test_replies_of_one_turn_travel_in_one_message():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Generate(id=1, model="m"), Generate(id=2, model="m"))
            peer, _ = await desk.next()
            await desk.next()
            for number in (1, 2):
                peer.send(Delta(id=number, tokens=1, text="a"))
                peer.send(finished(number))
            kinds = [(type(reply), reply.id) for reply in [await client.receive() for _ in range(4)]]
            assert kinds == [(Delta, 1), (Finished, 1), (Delta, 2), (Finished, 2)]
            assert client.messages == 1

    asyncio.run(main())


def test_requests_of_one_message_are_answered_each_by_itself():
    async def main():
        async with serving() as (_, desk, client):
            requests = [Generate(id=1, model="m"), {"verb": "dance", "id": 2}, ListModels(id=3), Cancel(id=1)]
            await client.socket.send(HEADER + msgspec.msgpack.encode(requests))
            assert [type((await desk.next())[1]) for _ in range(3)] == [Generate, ListModels, Cancel]
            replies = [await client.receive() for _ in range(2)]
            assert [(type(reply), reply.id) for reply in replies] == [(Failed, 2), (Done, 3)]

    asyncio.run(main())


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


def test_a_second_request_with_an_open_id_is_refused_and_the_first_goes_on():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Generate(id=5, model="m"), Generate(id=5, model="m"))
            peer, _ = await desk.next()
            refusal = await client.receive()
            assert (refusal.id, refusal.code) == (0, Code.DUPLICATE_ID)
            peer.send(finished(5, "the first"))
            assert (await client.receive()).choices[0].text == "the first"
            await client.send(Generate(id=5, model="m"))  # closed by now
            await desk.next()
            assert await client.quiet()

    asyncio.run(main())


def test_a_connection_may_have_so_many_requests_open(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_OPEN", 4)
    monkeypatch.setattr(server_module, "MAX_FOLLOWED", 2)

    async def main():
        async with serving(clients=2) as (_, desk, client, other):
            await client.send(Watch(id=1), Logs(id=2, follow=True), Watch(id=3), Load(id=4, model="m"))
            await client.send(Load(id=5, model="m"), Load(id=6, model="m"))
            for number in (3, 6):
                refusal = await client.receive()
                assert (refusal.id, refusal.code) == (number, Code.QUEUE_FULL)
            assert await other.quiet()
            await client.send(Cancel(id=1))
            assert (await client.receive()).id == 1
            await client.send(Load(id=7, model="m"))
            while (await desk.next())[1].id != 7:
                pass

    asyncio.run(main())


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


def test_two_clients_may_use_the_same_ids():
    async def main():
        async with serving(clients=2) as (_, desk, one, two):
            await one.send(Load(id=1, model="one"))
            await two.send(Load(id=1, model="two"))
            for _ in range(2):
                peer, request = await desk.next()
                peer.send(Failed(id=1, code="x", message=request.model))
            assert (await one.receive()).message == "one"
            assert (await two.receive()).message == "two"

    asyncio.run(main())


def test_nothing_follows_a_terminal_reply():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Generate(id=1, model="m"))
            peer, _ = await desk.next()
            peer.send(finished(1))
            assert not peer.holds(1)
            peer.send(Delta(id=1, tokens=1))
            peer.send(finished(1))
            assert isinstance(await client.receive(), Finished)
            assert await client.quiet()

    asyncio.run(main())


def test_cancel_reaches_the_handler_only_for_an_open_request():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Cancel(id=3), Generate(id=4, model="m"), Cancel(id=4))
            _, request = await desk.next()
            assert isinstance(request, Generate)
            peer, request = await desk.next()
            assert request == Cancel(id=4)
            peer.send(Cancelled(id=4))
            assert await client.receive() == Cancelled(id=4)
            await client.send(Cancel(id=4))
            assert await client.quiet()
            assert len(desk.requests) == 1

    asyncio.run(main())


def test_cancelling_a_watch_ends_it():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Watch(id=4))
            peer, _ = await desk.next()
            peer.send(State(id=4, neuron="n", instance="i", draining=False, devices=[], models=[]))
            assert isinstance(await client.receive(), State)
            await client.send(Cancel(id=4))
            assert await client.receive() == Cancelled(id=4)
            assert (await desk.next())[1] == Cancel(id=4)
            peer.send(State(id=4, neuron="n", instance="i", draining=False, devices=[], models=[]))
            assert await client.quiet()

    asyncio.run(main())


def test_a_handler_that_raises_ends_the_request_with_its_error():
    def handler(peer, request):
        if request.id == 1:
            raise CortexError(Code.QUEUE_FULL, "full", retry_after=2.0, details={"limit": 3})
        raise KeyError("bug")

    async def main():
        async with serving(handler) as (_, _desk, client):
            await client.send(Health(id=1), Health(id=2))
            reply = await client.receive()
            assert reply == Failed(
                id=1, code=Code.QUEUE_FULL, message="full", retry_after=2.0, details={"limit": 3}
            )
            reply = await client.receive()
            assert (reply.id, reply.code) == (2, Code.INTERNAL)
            assert "bug" in reply.message

    asyncio.run(main())


def test_a_reply_that_cannot_be_encoded_fails_its_own_request_only():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Generate(id=1, model="m"), Generate(id=2, model="m"))
            peer, _ = await desk.next()
            await desk.next()
            peer.send(Delta(id=1, tokens=1, text="\ud800"))  # half a character, as JSON escapes can make it
            peer.send(Delta(id=2, tokens=1, text="fine"))
            peer.send(finished(1))
            first, second = await client.receive(), await client.receive()
            assert (type(first), first.id, first.code) == (Failed, 1, Code.INTERNAL)
            assert (second.id, second.text) == (2, "fine")
            assert await client.quiet()

    asyncio.run(main())


def test_a_stream_that_cannot_be_encoded_is_cancelled_in_the_handler():
    async def main():
        async with serving() as (_, desk, client):
            await client.send(Generate(id=1, model="m"))
            peer, _ = await desk.next()
            peer.send(Delta(id=1, tokens=1, text="\ud800"))
            assert isinstance(await client.receive(), Failed)
            assert (await desk.next())[1] == Cancel(id=1)
            assert not peer.holds(1)

    asyncio.run(main())


def test_heartbeats_go_to_those_who_wait_and_to_nobody_else(monkeypatch):
    monkeypatch.setattr(server_module, "HEARTBEAT_SECONDS", 0.05)

    async def main():
        async with serving(clients=3) as (_, _desk, idle, waiting, watching):
            await idle.send(ListModels(id=1))
            assert await idle.receive() == Done(id=1)
            await waiting.send(Generate(id=2, model="m"))
            await watching.send(Generate(id=3, model="m"), Watch(id=4))
            for _ in range(3):
                assert await waiting.receive() == Heartbeat(id=0)
            beats = {(await watching.receive()).id for _ in range(4)}
            assert beats <= {0, 4}
            assert 4 in beats
            assert await idle.quiet()

    asyncio.run(main())


def test_a_peer_without_open_requests_leaves_nothing_behind():
    async def main():
        async with serving() as (server, _, client):
            for number in range(1, 50):
                await client.send(ListModels(id=number), Cancel(id=10_000 + number))
                assert await client.receive() == Done(id=number)
            await client.socket.send_multipart([b"garbage"])
            assert (await client.receive()).code == Code.BAD_FRAME
            await asyncio.sleep(0)
            assert (server._peers, server._dirty, server._blocked) == ({}, [], [])

    asyncio.run(main())


def test_a_client_that_left_is_noticed_once_while_nothing_but_heartbeats_is_sent(monkeypatch):
    monkeypatch.setattr(server_module, "HEARTBEAT_SECONDS", 0.05)

    async def main():
        async with serving() as (server, desk, client):
            await client.send(Generate(id=1, model="m"), Watch(id=2))
            peer, _ = await desk.next()
            client.close()
            await asyncio.wait_for(desk.left.wait(), SECONDS)
            assert peer.gone
            assert not peer.holds(1)
            peer.send(finished(1))
            await asyncio.sleep(0.2)
            assert desk.gone == [peer]
            assert server._peers == {}

    asyncio.run(main())


KILLED = """
from ipc.client import BlockingClient
from ipc.messages.requests import Generate
for reply in BlockingClient(argv[0]).stream(Generate(id=0, model="m", stream=True), 20):
    print("token", flush=True)
"""


def test_a_client_killed_in_mid_stream_is_noticed(spawn):
    async def main():
        async with serving(clients=0) as (server, desk):
            child = spawn(KILLED, server.endpoint, stdout=subprocess.PIPE)
            peer, request = await desk.next()
            peer.send(Delta(id=request.id, tokens=1))
            assert await asyncio.to_thread(child.stdout.readline) == "token\n"
            child.send_signal(signal.SIGKILL)
            while not desk.gone:
                peer.send(Delta(id=request.id, tokens=1))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(desk.left.wait(), 0.05)
            assert desk.gone == [peer]

    asyncio.run(main())


def test_a_client_that_does_not_read_is_given_up_and_others_are_served(monkeypatch):
    monkeypatch.setattr(server_module, "STALL_SECONDS", 0.2)

    async def main():
        async with serving(clients=1) as (server, desk, other):
            slow = RawClient(server.endpoint, rcvhwm=1)
            slow.socket.setsockopt(zmq.RCVBUF, 4096)
            await slow.send(Generate(id=1, model="m"), Generate(id=2, model="m"))
            peer, _ = await desk.next()
            await desk.next()
            sent = 0
            while not desk.gone:
                peer.send(Delta(id=1, tokens=1, text="x" * 100_000))
                sent += 1
                await asyncio.sleep(0 if not server._blocked else 0.01)
            assert desk.gone == [peer]
            assert await other.quiet()
            # When it reads again, what it missed ends in errors, one for each request.
            ends = []
            while len(ends) < 2:
                reply = await slow.receive()
                if isinstance(reply, Failed):
                    ends.append(reply.id)
            assert sorted(ends) == [1, 2]
            assert await slow.quiet()
            assert server._blocked == []
            slow.close()

    asyncio.run(main())


def test_a_backlog_is_bounded(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_BACKLOG", 100)

    async def main():
        async with serving(clients=0) as (server, desk):
            slow = RawClient(server.endpoint, rcvhwm=1)
            await slow.send(Generate(id=1, model="m"))
            peer, _ = await desk.next()
            while not desk.gone:
                peer.send(Delta(id=1, tokens=1, text="x" * 10_000))
                await asyncio.sleep(0)
            assert len(peer._outbox) == 1
            slow.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.168.1.5:13131", "tcp://[::]:0", "tcp://beast:1"]
)
def test_off_loopback_without_keys_is_refused(endpoint):
    with pytest.raises(CortexError, match="keygen"):
        Server(endpoint, print, print)
    Server(endpoint, print, print, insecure=True)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    Server(endpoint, print, print, secret=secret, allowed=[public])


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:0", "tcp://127.3.2.1:1", "tcp://[::1]:0", "ipc:///tmp/x"]
)
def test_loopback_needs_no_keys(endpoint):
    Server(endpoint, print, print)


def test_a_secret_key_that_nobody_may_use_is_refused():
    with pytest.raises(CortexError, match="belong together"):
        Server("tcp://127.0.0.1:0", print, print, secret=zmq.curve_keypair()[1].decode())


@pytest.mark.usefixtures("no_descriptors_left")
def test_a_port_in_use_is_named_and_leaves_nothing_behind():
    async def main(endpoint):
        server = Server(endpoint, print, print)
        with pytest.raises(OSError, match=f"cannot listen on {endpoint}: Address already in use"):
            server.start()
        server.close()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(main(f"tcp://127.0.0.1:{taken.getsockname()[1]}"))


@pytest.mark.usefixtures("no_descriptors_left")
def test_closing_leaves_no_descriptor_and_may_come_twice():
    async def main():
        async with serving() as (server, desk, client):
            await client.send(Generate(id=1, model="m"))
            await desk.next()
            server.close()

    asyncio.run(main())


def test_what_was_queued_before_closing_still_arrives():
    async def main():
        async with serving() as (server, desk, client):
            await client.send(CountTokens(id=1, model="m"))
            peer, _ = await desk.next()
            peer.send(TokenCount(id=1, tokens=3))
            server.close()
            assert await client.receive() == TokenCount(id=1, tokens=3)

    asyncio.run(main())


def test_an_endpoint_with_port_0_says_which_port_it_got():
    async def main():
        async with serving(clients=0) as (server, _):
            assert int(server.endpoint.rpartition(":")[2]) > 0
            assert server.endpoint.startswith("tcp://127.0.0.1:")

    asyncio.run(main())
