"""What a client makes of replies that are late, unknown, garbage or of another version."""

import asyncio
import contextlib
import time

import msgspec
import pytest
import zmq
import zmq.asyncio

from ipc.client import ENOUGH, NeuronClient
from ipc.errors import Code
from ipc.messages.answers import Choice, Span
from ipc.messages.catalogue import Appraisal
from ipc.messages.framing import BYTES_TOGETHER, HEADER, MOST_TOGETHER
from ipc.messages.replies import (
    AnyReply,
    Appraisals,
    Done,
    Failed,
    Finished,
    HealthReply,
    Heartbeat,
    Quoted,
)
from ipc.messages.requests import Discover, Eviction, Generate, Health, Hello, ListModels, Load, Quote
from ipc.messages.state import Device, ModelState
from tests.ipc.clients import everything, serve
from tests.ipc.serving import SECONDS

DEVICE = Device(id="cpu", kind="cpu", name="", memory_total=2, memory_free=1)


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


@pytest.mark.parametrize(
    "reply",
    [
        {"type": "finished"},
        {"type": "delta", "tokens": 1, "index": -1},
        {"type": "state", "neuron": "n", "instance": "1", "draining": False, "devices": [], "models": 5},
        {"type": "done", "id": "a"},
    ],
)
def test_a_reply_that_cannot_be_read_ends_its_call_and_no_other(reply):
    async def main():
        async with puppet() as (neuron, client):
            call, other = client.open(Health(id=0)), client.open(Health(id=0))
            for _ in range(2):
                await neuron.request()
            progress = {"type": "progress", "id": other.id, "stage": "a new one"}
            await neuron.reply({"id": call.id} | reply, progress, Done(id=other.id))
            assert await everything(other) == [Done(id=other.id)]
            if "id" in reply:  # nobody knows whose it is
                await neuron.reply(Done(id=call.id))
                assert await everything(call) == [Done(id=call.id)]
                return
            (failed,) = await everything(call)
            assert (failed.id, failed.code) == (call.id, Code.INTERNAL)
            assert f"cannot be read: {reply['type']}: " in failed.message
            assert (await neuron.request()) == {"verb": "cancel", "id": call.id}

    asyncio.run(main())


# Words that stand for themselves until a newer version has more of them, by what is to become of those.
NEWER_WORDS = [
    (HealthReply, "models", ModelState(id="m", status="ready"), "status", "unloaded"),
    (HealthReply, "devices", DEVICE, "kind", "newer"),
    (Finished, "choices", Choice(reason="stop", text="all of it"), "reason", "stop"),
    (Appraisals, "models", Appraisal(model="m", verdict="fits"), "verdict", "newer"),
]


@pytest.mark.parametrize(("kind", "among", "value", "word", "read"), NEWER_WORDS)
def test_a_word_of_a_newer_neuron_costs_nothing_beside_it(kind, among, value, word, read):
    others = {
        HealthReply: {"uptime": 1.0, "draining": False, "devices": [], "models": [], "ranks": {}},
        Finished: {"usage": {}, "timings": {}},
        Appraisals: {},
    }[kind]
    newer = msgspec.to_builtins(value) | {word: "newer"}
    reply = {"type": kind.__struct_config__.tag, **others, among: [msgspec.to_builtins(value), newer]}

    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Health(id=0))
            await neuron.request()
            await neuron.reply({"id": call.id, **reply})
            (said,) = await everything(call)
            assert getattr(said, among) == [value, msgspec.structs.replace(value, **{word: read})]

    asyncio.run(main())


def test_a_value_of_a_newer_neuron_may_have_more_fields():
    async def main():
        async with puppet() as (neuron, client):
            call = client.open(Discover(id=0))
            await neuron.request()
            newer = msgspec.to_builtins(DEVICE) | {"perfume": 5}
            await neuron.reply({"type": "discovery", "id": call.id, "hostname": "h", "devices": [newer]})
            (said,) = await everything(call)
            assert said.devices == [DEVICE]

    asyncio.run(main())


def test_a_newer_verdict_and_eviction_are_read_too():
    async def main():
        async with puppet() as (neuron, client):
            quote, hello = client.open(Quote(id=0, model="m")), client.open(Hello(id=0))
            await neuron.request()
            await neuron.request()
            await neuron.reply({"type": "quoted", "id": quote.id, "verdict": "newer", "seconds": 2.0})
            assert await everything(quote) == [Quoted(id=quote.id, verdict="waits", seconds=2.0)]
            said = {"neuron": "n", "version": "9", "instance": "i", "eviction": {"strategy": "newer"}}
            await neuron.reply({"type": "hello", "id": hello.id, **said})
            (reply,) = await everything(hello)
            assert reply.eviction == Eviction(strategy="newer")

    asyncio.run(main())


def test_no_reply_is_lost_for_a_word_but_progress():
    seen, closed = set(), set()

    def look(kind, where):
        if isinstance(kind, msgspec.inspect.LiteralType):
            closed.add(where)
        if isinstance(kind, msgspec.inspect.StructType):
            if kind.cls in seen:
                return
            seen.add(kind.cls)
            for field in kind.fields:
                look(field.type, f"{kind.cls.__name__}.{field.name}")
        for name in ("item_type", "key_type", "value_type", "types", "type"):
            inner = getattr(kind, name, ())
            for each in inner if isinstance(inner, tuple) else (inner,):
                look(each, where)

    look(msgspec.inspect.type_info(AnyReply), "")
    assert {ModelState, Device, Span, Eviction} <= seen
    assert closed == {"Progress.stage"}  # of which none is needed


async def acquainted(neuron, client):
    """Return once the client has heard of the neuron's version."""
    call = client.open(Health(id=0))
    await neuron.request()
    await neuron.reply(Done(id=call.id))
    await everything(call)


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


def test_a_neuron_with_less_than_waits_for_it_gets_several_at_once():
    async def main():
        async with puppet() as (neuron, client):
            await acquainted(neuron, client)
            for _ in range(3 * ENOUGH):
                client.open(Health(id=0))
            # The last ones are fewer than what the neuron has by then: they wait for others.
            assert [len(await neuron.request()) for _ in range(3)] == [ENOUGH, ENOUGH, ENOUGH]
            for _ in range(ENOUGH + 1):
                client.open(Health(id=0))
            assert len(await neuron.request()) == ENOUGH + 1

    asyncio.run(main())


def test_more_than_one_message_holds_travels_in_several():
    async def main():
        async with puppet() as (neuron, client):
            await acquainted(neuron, client)
            for _ in range(2 * MOST_TOGETHER):  # of which so many are with the neuron that what follows waits
                client.open(Health(id=0))
            sent = 0
            while sent < 2 * MOST_TOGETHER:
                sent += len(await neuron.request())
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
            call = client.open(Generate(id=0, model="m"), patient=True)  # until it is connected
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
