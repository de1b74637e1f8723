"""The clients: every call ends, whatever becomes of the neuron, and a reply never meets the wrong call."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time

import msgspec
import pytest
import zmq
import zmq.asyncio

from ipc.client import BlockingClient, NeuronClient
from ipc.errors import Code, CortexError
from ipc.keys import generate, load_public, load_secret
from ipc.messages.answers import Usage
from ipc.messages.framing import BYTES_TOGETHER, HEADER, MOST_TOGETHER
from ipc.messages.replies import Cancelled, Delta, Done, Failed, Finished, Heartbeat, Progress
from ipc.messages.requests import Cancel, CountTokens, Generate, Health, ListModels, Load, Resume
from ipc.server import Server
from ipc.sockets import MAX_MESSAGE
from tests.ipc.links import Link
from tests.ipc.test_server import SECONDS, Desk, finished
from tests.ports import free_port

DELTAS = 5


class Model(Desk):
    """Answers: `generate` streams `DELTAS` deltas when `stream`, else waits to be cancelled; `load` fails."""

    def handle(self, peer, request):
        super().handle(peer, request)
        match request:
            case Generate(stream=True):
                for number in range(DELTAS):
                    peer.send(Delta(id=request.id, tokens=1, text=str(number)))
                if request.model != "endless":
                    peer.send(finished(request.id))
            case Cancel():
                peer.send(Cancelled(id=request.id, usage=Usage(completion_tokens=DELTAS)))
            case Load():
                peer.send(Progress(id=request.id, stage="loading", fraction=0.5))
                error = CortexError(
                    Code.INSUFFICIENT_MEMORY, "no room", param="model", retry_after=1.5, details={"free": 1}
                )
                raise error


@contextlib.asynccontextmanager
async def connected(endpoint="tcp://127.0.0.1:0", silence=5.0, **options):
    """(server, what its handler saw, client)"""
    model = Model()
    server = Server(endpoint, model.handle, model.on_gone)
    server.start()
    client = NeuronClient(server.endpoint, silence=silence, **options)
    client.start()
    try:
        yield server, model, client
    finally:
        client.close()
        server.close()


async def everything(call):
    """All replies to a call, which must end."""
    async with asyncio.timeout(SECONDS):
        return [reply async for reply in call]


def free_endpoint():
    """An endpoint where nobody listens, and somebody could."""
    return f"tcp://127.0.0.1:{free_port()}"


def test_a_stream_gives_its_replies_in_order_and_ends():
    async def main():
        async with connected() as (_, _model, client):
            replies = await everything(client.open(Generate(id=0, model="m", stream=True)))
            assert [reply.text for reply in replies[:-1]] == [str(number) for number in range(DELTAS)]
            assert isinstance(replies[-1], Finished)
            assert client.alive

    asyncio.run(main())


def test_a_request_that_no_neuron_takes_breaks_no_connection():
    async def main():
        async with connected() as (_, _model, client):
            other = client.open(Generate(id=0, model="m"))
            with pytest.raises(CortexError, match=f"a neuron takes {MAX_MESSAGE}"):
                client.open(Generate(id=0, model="m", prompt="a" * MAX_MESSAGE))
            assert len(await everything(client.open(Generate(id=0, model="m", stream=True)))) == DELTAS + 1
            other.cancel()
            assert isinstance((await everything(other))[-1], Cancelled)

    asyncio.run(main())


def test_many_calls_at_once_each_get_their_own_replies():
    async def main():
        async with connected() as (_, _model, client):
            calls = [client.open(Generate(id=0, model="m", stream=True)) for _ in range(300)]
            assert len({call.id for call in calls}) == 300
            for call in calls:
                replies = await everything(call)
                assert {reply.id for reply in replies} == {call.id}
                assert len(replies) == DELTAS + 1
            assert client._calls == {}

    asyncio.run(main())


def test_ask_gives_the_terminal_reply_and_raises_a_failure_whole():
    async def main():
        async with connected() as (_, _model, client):
            assert isinstance(await client.ask(ListModels(id=0), SECONDS), Done)
            with pytest.raises(CortexError) as caught:
                await client.ask(Load(id=0, model="m"), SECONDS)
            error = caught.value
            assert (error.code, error.message, error.param) == (Code.INSUFFICIENT_MEMORY, "no room", "model")
            assert (error.retry_after, error.details) == (1.5, {"free": 1})

    asyncio.run(main())


def test_take_gives_all_that_is_there_and_nothing_after_its_bound():
    async def main():
        async with connected() as (_, _model, client):
            call = client.open(Generate(id=0, model="endless", stream=True))
            taken = []
            while len(taken) < DELTAS:
                taken += await call.take(SECONDS)
            assert [reply.text for reply in taken] == [str(number) for number in range(DELTAS)]
            assert await call.take(0.01) == []
            call.cancel()
            assert isinstance((await call.take(SECONDS))[0], Cancelled)
            assert call.closed
            assert await call.take(SECONDS) == []

    asyncio.run(main())


def test_cancel_ends_the_call_with_cancelled():
    async def main():
        async with connected() as (_, _model, client):
            call = client.open(Generate(id=0, model="m"))
            call.cancel()
            (reply,) = await everything(call)
            assert isinstance(reply, Cancelled)
            assert call.closed
            call.cancel()

    asyncio.run(main())


async def cancelled(model):
    """Wait until the server was told to cancel something; its id."""
    while True:
        _, request = await model.next()
        if isinstance(request, Cancel):
            return request.id


def test_leaving_the_iteration_early_cancels():
    async def main():
        async with connected() as (_, model, client):
            call = client.open(Generate(id=0, model="endless", stream=True))
            async for reply in call:
                assert isinstance(reply, Delta)
                break
            assert await cancelled(model) == call.id

    asyncio.run(main())


def test_a_task_that_is_cancelled_cancels_its_call():
    async def main():
        async with connected() as (_, model, client):
            call = client.open(Generate(id=0, model="m"))
            task = asyncio.create_task(everything(call))
            await model.next()
            task.cancel()
            assert await cancelled(model) == call.id

    asyncio.run(main())


def test_ask_that_is_not_answered_in_time_cancels_and_says_so():
    async def main():
        async with connected() as (server, model, client):
            with pytest.raises(
                CortexError, match=f"no answer from the neuron at {server.endpoint}"
            ) as caught:
                await client.ask(Generate(id=0, model="m"), 0.1)
            assert caught.value.code == Code.NEURON_LOST
            assert await cancelled(model) > 0

    asyncio.run(main())


def test_a_request_made_before_the_neuron_is_up_is_served_when_it_comes():
    async def main():
        endpoint = free_endpoint()
        client = NeuronClient(endpoint, silence=SECONDS)
        client.start()
        assert not client.alive
        asking = asyncio.create_task(client.ask(ListModels(id=0), SECONDS))
        await asyncio.sleep(0.3)
        async with connected(endpoint):
            assert isinstance(await asking, Done)
            assert client.alive
            client.close()

    asyncio.run(main())


def test_a_question_waits_for_its_neuron_as_long_as_it_was_told_to():
    """A neuron takes its time to start; the silence of one that is there is another matter."""

    async def main():
        endpoint = free_endpoint()
        client = NeuronClient(endpoint, silence=0.1)
        client.start()
        asking = asyncio.create_task(client.ask(ListModels(id=0), SECONDS))
        (refused,) = await everything(client.open(ListModels(id=0)))
        assert refused.code == Code.NEURON_LOST
        assert not asking.done()
        async with connected(endpoint):
            assert isinstance(await asking, Done)
            client.close()

    asyncio.run(main())


def test_a_request_withdrawn_before_the_neuron_is_up_never_reaches_it():
    async def main():
        endpoint = free_endpoint()
        client = NeuronClient(endpoint)
        client.start()
        call = client.open(Generate(id=0, model="withdrawn"))
        with pytest.raises(CortexError) as caught:
            await client.ask(Generate(id=0, model="timed out"), 0.05)
        assert caught.value.code == Code.NEURON_LOST
        call.cancel()
        assert await everything(call) == [Cancelled(id=call.id)]
        async with connected(endpoint) as (_, model, _client):
            await client.ask(ListModels(id=0), SECONDS)
            assert [type(request) for _, request in model.requests] == [ListModels]
            client.close()

    asyncio.run(main())


SERVE = """
import asyncio
from ipc.messages.replies import Done
from ipc.messages.requests import Generate
from ipc.server import Server
def handler(peer, request):
    if not isinstance(request, Generate):
        peer.send(Done(id=request.id))
async def main():
    server = Server(argv[0], handler, lambda peer: None)
    server.start()
    print(server.endpoint, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def serve(spawn, endpoint):
    child = spawn(SERVE, endpoint, stdout=subprocess.PIPE)
    return child, child.stdout.readline().strip()


def test_a_neuron_that_is_killed_ends_open_calls_at_once_and_is_found_again_when_it_is_back(spawn):
    async def main():
        child, endpoint = serve(spawn, "tcp://127.0.0.1:0")
        client = NeuronClient(endpoint, silence=60)  # it is the closed connection that tells
        client.start()
        await client.ask(ListModels(id=0), SECONDS)
        calls = [client.open(Generate(id=0, model="m")) for _ in range(3)]
        await client.ask(ListModels(id=0), SECONDS)
        child.send_signal(signal.SIGKILL)
        for call in calls:
            (reply,) = await everything(call)
            assert (type(reply), reply.code) == (Failed, Code.NEURON_LOST)
        assert not client.alive
        asking = asyncio.create_task(client.ask(ListModels(id=0), SECONDS))
        serve(spawn, endpoint)
        assert isinstance(await asking, Done)
        assert client.alive
        client.close()

    asyncio.run(main())


def test_a_neuron_that_is_stopped_is_lost_after_the_silence(spawn):
    async def main():
        child, endpoint = serve(spawn, "tcp://127.0.0.1:0")
        client = NeuronClient(endpoint, silence=0.5)
        client.start()
        await client.ask(ListModels(id=0), SECONDS)
        call = client.open(Generate(id=0, model="m"))
        child.send_signal(signal.SIGSTOP)
        (reply,) = await everything(call)
        assert (type(reply), reply.code) == (Failed, Code.NEURON_LOST)
        assert "0.5 s" in reply.message
        assert not client.alive
        child.send_signal(signal.SIGCONT)
        assert isinstance(await client.ask(ListModels(id=0), SECONDS), Done)
        client.close()

    asyncio.run(main())


def test_a_connection_that_nothing_comes_through_is_left_for_another_one():
    async def main():
        async with connected() as (server, _model, _client):
            link = Link(int(server.endpoint.rpartition(":")[2]))
            client = NeuronClient(await link.start(), silence=0.5)
            client.start()
            await client.ask(ListModels(id=0), SECONDS)
            call = client.open(Generate(id=0, model="m"))
            link.freeze()
            (reply,) = await everything(call)
            assert (type(reply), reply.code) == (Failed, Code.NEURON_LOST)
            assert isinstance(await client.ask(ListModels(id=0), SECONDS), Done)
            client.close()
            await link.close()

    asyncio.run(main())


BACKLOG = """
import asyncio, threading, time
from ipc.client import Call, NeuronClient
from ipc.messages.replies import *
from ipc.messages.requests import *
from ipc.server import Server

go, sent, enough = threading.Event(), threading.Event(), threading.Event()
plain_push = Call._push

async def stream(started):
    asked = asyncio.Queue()
    server = Server("tcp://127.0.0.1:0", lambda peer, request: asked.put_nowait((peer, request)), print)
    server.start()
    started(server.endpoint)
    peer, request = await asked.get()
    for number in range(300):
        peer.send(Delta(id=request.id, tokens=number))
        await asyncio.sleep(0)
        if number == 0:
            go.wait(20)
    sent.set()
    enough.wait(20)
    server.close()

def push(call, reply):
    plain_push(call, reply)
    if isinstance(reply, Delta) and reply.tokens == 20:  # most of the others lie in the queue
        enough.set()
        server.join()
        time.sleep(0.3)  # until libzmq knows, and we do not, that the connection has ended

Call._push = push

async def main():
    global server
    loop, endpoint = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    started = lambda text: loop.call_soon_threadsafe(endpoint.set_result, text)
    server = threading.Thread(target=lambda: asyncio.run(stream(started)))
    server.start()
    client = NeuronClient(await endpoint)
    client.start()
    call = client.open(Generate(id=0, model="m", stream=True))
    await call.take(20)
    go.set()
    sent.wait()
    time.sleep(0.3)  # they arrive
    client.open(Generate(id=0, model="m"))  # with a send libzmq takes notice of what arrived
    while not call.closed:
        [*_, last] = await call.take(20)
    print(last.code)

asyncio.run(main())
"""


def test_a_connection_that_ends_while_many_messages_lie_unread_ends_its_calls_and_not_the_process(spawn):
    child = spawn(BACKLOG, stdout=subprocess.PIPE)
    assert (child.communicate(timeout=SECONDS)[0], child.returncode) == ("neuron_lost\n", 0)


class Puppet:
    """A neuron whose every frame the test chooses."""

    def __init__(self):
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"

    async def request(self):
        self.key, message = await asyncio.wait_for(self.socket.recv_multipart(), SECONDS)
        return msgspec.msgpack.decode(message[len(HEADER) :])

    async def reply(self, *replies, header=HEADER):
        await self.socket.send_multipart([self.key, header + msgspec.msgpack.encode(replies)])


@contextlib.asynccontextmanager
async def puppet(silence=5.0):
    neuron = Puppet()
    client = NeuronClient(neuron.endpoint, silence=silence)
    client.start()
    try:
        yield neuron, client
    finally:
        client.close()
        neuron.context.destroy(linger=0)


def test_replies_for_unknown_and_ended_calls_are_dropped():
    async def main():
        async with puppet() as (neuron, client):
            first = client.open(Health(id=0))
            assert (await neuron.request())["id"] == first.id
            await neuron.reply(Done(id=first.id), Done(id=first.id), Done(id=77), Heartbeat(id=0))
            assert await everything(first) == [Done(id=first.id)]
            second = client.open(Health(id=0))
            assert (await neuron.request())["id"] == second.id != first.id
            await neuron.reply(Failed(id=first.id, code="late", message=""), Done(id=second.id))
            assert await everything(second) == [Done(id=second.id)]

    asyncio.run(main())


def test_a_reply_type_of_a_newer_minor_version_is_skipped():
    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Health(id=0))
            await neuron.request()
            newer = HEADER[:3] + b"\x63"
            await neuron.reply(
                {"type": "perfume", "id": call.id}, {"type": "done", "id": call.id, "x": 1}, header=newer
            )
            assert await everything(call) == [Done(id=call.id)]

    asyncio.run(main())


def test_requests_of_one_turn_travel_together_to_a_neuron_that_takes_that():
    async def main():
        async with puppet() as (neuron, client):
            for header, together in ((HEADER[:3] + b"\x03", False), (HEADER, True)):
                call = client.open(Health(id=0))
                assert (await neuron.request())["id"] == call.id
                await neuron.reply(Done(id=call.id), header=header)
                await everything(call)
                numbers = [client.open(Health(id=0)).id for _ in range(2)]
                client.open(Health(id=0)).cancel()  # before it was sent
                came = await neuron.request()
                several = came if together else [came, await neuron.request()]
                assert [each["id"] for each in several] == numbers
                await neuron.reply(*(Done(id=number) for number in numbers))

    asyncio.run(main())


def test_more_than_one_message_holds_travels_in_several():
    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Health(id=0))
            await neuron.request()
            await neuron.reply(Done(id=call.id))
            await everything(call)
            for _ in range(MOST_TOGETHER + 1):
                client.open(Health(id=0))
            client.open(Generate(id=0, model="m", prompt="x" * BYTES_TOGETHER))
            messages = [await neuron.request() for _ in range(3)]
            assert [len(each) for each in messages[:1]] == [MOST_TOGETHER]
            assert [each["verb"] for each in messages[1:]] == ["health", "generate"]

    asyncio.run(main())


def test_another_major_version_ends_the_call_with_protocol_mismatch():
    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Health(id=0))
            await neuron.request()
            await neuron.reply(header=b"cx\x09\x00")
            (reply,) = await everything(call)
            assert (reply.id, reply.code) == (call.id, Code.PROTOCOL_MISMATCH)
            assert "protocol 9" in reply.message

    asyncio.run(main())


def test_an_older_neuron_that_does_not_understand_us_ends_the_call_with_protocol_mismatch():
    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Health(id=0))
            await neuron.request()
            refusal = Failed(id=0, code=Code.BAD_FRAME, message="a message has two frames")
            body = msgspec.msgpack.encode([refusal])
            await neuron.socket.send_multipart([neuron.key, b"cx\x01\x00", body])
            (reply,) = await everything(call)
            assert (reply.id, reply.code) == (call.id, Code.PROTOCOL_MISMATCH)
            assert "protocol 1" in reply.message

    asyncio.run(main())


@pytest.mark.parametrize(
    "frames", [[b"x"], [b"cx"], [b"HTTPx"], [HEADER, b"\x90"], [HEADER + b"\x90", b""], [HEADER + b"\xc1"]]
)
def test_garbage_from_a_neuron_is_ignored(frames):
    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Health(id=0))
            await neuron.request()
            await neuron.socket.send_multipart([neuron.key, *frames])
            await neuron.reply(Done(id=call.id))
            assert await everything(call) == [Done(id=call.id)]

    asyncio.run(main())


def test_a_failure_with_id_0_ends_what_is_open():
    async def main():
        async with puppet() as (neuron, client):
            calls = [client.open(Health(id=0)) for _ in range(2)]
            await neuron.request()
            await neuron.reply(Failed(id=0, code=Code.PROTOCOL_MISMATCH, message="too new"))
            for call in calls:
                (reply,) = await everything(call)
                assert (reply.id, reply.code) == (call.id, Code.PROTOCOL_MISMATCH)

    asyncio.run(main())


def test_a_neuron_that_says_nothing_is_lost_and_told_to_stop():
    async def main():
        async with puppet(silence=0.3) as (neuron, client):
            call = client.open(Generate(id=0, model="m"))
            assert (await neuron.request())["verb"] == "generate"
            (reply,) = await everything(call)
            assert (type(reply), reply.code) == (Failed, Code.NEURON_LOST)
            assert await neuron.request() == {"verb": "cancel", "id": call.id}

    asyncio.run(main())


def test_more_requests_than_the_queue_takes_all_arrive_in_the_end():
    """The neuron stands still while thousands of requests and cancels are made; then it gets every one."""

    async def main():
        async with puppet(silence=60) as (neuron, client):
            first = client.open(Health(id=0))
            await neuron.request()
            calls = [client.open(Load(id=0, model="x" * 2000)) for _ in range(6000)]
            assert client._unsent
            first.cancel()
            asked = [await neuron.request() for _ in range(6001)]
            assert {request["id"] for request in asked} == {first.id, *(call.id for call in calls)}
            await neuron.reply(*(Done(id=call.id) for call in calls))
            for call in calls:
                assert await everything(call) == [Done(id=call.id)]

    asyncio.run(main())


def test_heartbeats_keep_a_quiet_call_open_and_a_long_wait_for_its_replies_ends():
    async def main():
        async with puppet(silence=1.0) as (neuron, client):
            call = client.open(Generate(id=0, model="m"))
            await neuron.request()
            waiting = asyncio.create_task(call.take(1.0))  # so long a wait has no timer of its own
            for _ in range(15):
                await neuron.reply(Heartbeat(id=0))
                await asyncio.sleep(0.1)
            assert await waiting == []
            assert not call.closed
            assert client.alive

    asyncio.run(main())


def test_a_loop_that_stood_still_itself_does_not_blame_the_neuron(spawn):
    async def main():
        _, endpoint = serve(spawn, "tcp://127.0.0.1:0")
        client = NeuronClient(endpoint, silence=1.1)
        client.start()
        call = client.open(Generate(id=0, model="m"))
        await client.ask(ListModels(id=0), SECONDS)
        # A heartbeat comes in meanwhile, and lies there unread.
        asyncio.get_running_loop().call_soon(time.sleep, 1.4)
        assert await call.take(0.1) == []
        assert not call.closed
        client.close()

    asyncio.run(main())


def test_closing_ends_open_calls_and_tells_the_neuron():
    async def main():
        async with connected() as (_, model, client):
            call = client.open(Generate(id=0, model="m"))
            await model.next()
            client.close()
            (reply,) = await everything(call)
            assert (type(reply), reply.code) == (Failed, Code.NEURON_LOST)
            assert await cancelled(model) == call.id
            with pytest.raises(CortexError, match="not started"):
                client.open(ListModels(id=0))

    asyncio.run(main())


def test_closing_leaves_no_descriptor_and_may_come_twice():
    async def once():
        async with connected() as (_, _model, client):
            await client.ask(ListModels(id=0), SECONDS)
            client.close()

    asyncio.run(once())  # the process-wide context starts its threads with the first socket
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(once())
    deadline = time.monotonic() + SECONDS  # libzmq's threads close a connection when they come to it
    while (now := len(os.listdir("/proc/self/fd"))) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert now <= before


def test_clients_that_close_never_stall_the_others():
    """libzmq's thread writes connection events to each client; it must never wait for one that is gone."""

    async def main():
        for _ in range(40):
            async with connected() as (server, _model, client):
                clients = [client, *(NeuronClient(server.endpoint) for _ in range(7))]
                for other in clients[1:]:
                    other.start()
                await asyncio.gather(*(other.ask(ListModels(id=0), SECONDS) for other in clients))
                for other in clients:
                    other.open(Generate(id=0, model="m"))
                    other.close()  # with a `Cancel` to deliver; that is when the connection ends
                server.close()

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["tcp://x", "nonsense", "tcp://127.0.0.1", "udp://127.0.0.1:1"])
def test_an_impossible_endpoint_is_named(endpoint):
    async def main():
        with pytest.raises(CortexError, match=endpoint):
            NeuronClient(endpoint).start()

    asyncio.run(main())


# --- keys -----------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    """(secret, public) of a neuron, a client it knows, and a stranger"""
    return [
        (load_secret(secret), load_public(public))
        for secret, public in (generate(tmp_path, name) for name in ("neuron", "client", "stranger"))
    ]


async def ask_with_keys(server_options, client_options):
    server = Server(
        "tcp://127.0.0.1:0", lambda peer, request: peer.send(Done(id=request.id)), print, **server_options
    )
    server.start()
    client = NeuronClient(server.endpoint, **client_options)
    client.start()
    try:
        return await client.ask(Resume(id=0), SECONDS)
    finally:
        client.close()
        server.close()


def test_a_client_whose_key_is_allowed_is_served(keys):
    (neuron_secret, neuron_public), (secret, public), _ = keys
    options = {"secret": neuron_secret, "allowed": [public]}
    reply = asyncio.run(ask_with_keys(options, {"secret": secret, "server_public": neuron_public}))
    assert isinstance(reply, Done)


def test_a_stranger_is_refused_and_told_why(keys):
    (neuron_secret, neuron_public), (_, public), (secret, _) = keys
    options = {"secret": neuron_secret, "allowed": [public]}
    with pytest.raises(CortexError, match="does not know our key") as caught:
        asyncio.run(ask_with_keys(options, {"secret": secret, "server_public": neuron_public}))
    assert caught.value.code == Code.NEURON_LOST


def test_a_neuron_that_is_not_the_one_meant_is_refused(keys):
    (neuron_secret, _), (secret, public), (_, other_public) = keys
    options = {"secret": neuron_secret, "allowed": [public]}
    with pytest.raises(CortexError, match="handshake failed"):
        asyncio.run(ask_with_keys(options, {"secret": secret, "server_public": other_public}))


def test_keys_on_one_side_only_are_refused(keys):
    (neuron_secret, neuron_public), (secret, public), _ = keys
    with pytest.raises(CortexError, match="only one side uses keys"):
        asyncio.run(ask_with_keys({"secret": neuron_secret, "allowed": [public]}, {}))
    with pytest.raises(CortexError, match="only one side uses keys"):
        asyncio.run(ask_with_keys({}, {"secret": secret, "server_public": neuron_public}))


def test_half_a_pair_of_keys_is_refused():
    with pytest.raises(CortexError, match="belong together"):
        NeuronClient("tcp://127.0.0.1:1", secret="x")


# --- without a loop -------------------------------------------------------------------------------------

STREAM = """
import asyncio
from ipc.messages.replies import *
from ipc.messages.requests import *
from ipc.server import Server
cancelled = []
def handler(peer, request):
    if isinstance(request, Generate):
        for number in range(3):
            peer.send(Delta(id=request.id, tokens=1, text=str(number)))
        if request.model == "m":
            done = [Choice(reason="stop")]
            peer.send(Finished(id=request.id, choices=done, usage=Usage(), timings=Timings()))
    elif isinstance(request, Cancel):
        cancelled.append(request.id)
        peer.send(Cancelled(id=request.id))
    elif isinstance(request, Load):
        peer.send(Failed(id=request.id, code="model_not_found", message=request.model))
    elif isinstance(request, CountTokens):
        peer.send(TokenCount(id=request.id, tokens=len(cancelled)))
async def main():
    server = Server("tcp://127.0.0.1:0", handler, lambda peer: None)
    server.start()
    print(server.endpoint, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def blocking(spawn):
    child = spawn(STREAM, stdout=subprocess.PIPE)
    with BlockingClient(child.stdout.readline().strip()) as client:
        yield client


def test_the_blocking_client_streams(blocking):
    replies = list(blocking.stream(Generate(id=0, model="m", stream=True), SECONDS))
    assert [reply.text for reply in replies[:-1]] == ["0", "1", "2"]
    assert isinstance(replies[-1], Finished)


def test_the_blocking_client_raises_failures(blocking):
    with pytest.raises(CortexError, match="nowhere") as caught:
        blocking.ask(Load(id=0, model="nowhere"), SECONDS)
    assert caught.value.code == Code.MODEL_NOT_FOUND


def test_leaving_a_blocking_stream_early_cancels_it(blocking):
    for _ in blocking.stream(Generate(id=0, model="endless", stream=True), SECONDS):
        break
    assert blocking.ask(CountTokens(id=0, model="m"), SECONDS).tokens == 1


def test_a_blocking_stream_that_goes_quiet_ends_after_its_timeout(blocking):
    stream = blocking.stream(Generate(id=0, model="endless", stream=True), 0.2)
    assert [next(stream).text for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(CortexError) as caught:
        next(stream)
    assert caught.value.code == Code.NEURON_LOST


def test_a_blocking_client_without_a_neuron_gives_up():
    endpoint = free_endpoint()
    with BlockingClient(endpoint) as client, pytest.raises(CortexError) as caught:
        client.ask(ListModels(id=0), 0.1)
    assert caught.value.code == Code.NEURON_LOST
