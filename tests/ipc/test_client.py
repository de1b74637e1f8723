"""The clients: every call ends, and a reply never meets the wrong call."""

import asyncio
import os
import struct
import time

import pytest
import zmq

from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.keys import generate, load_public, load_secret
from ipc.messages.replies import Cancelled, Delta, Done, Failed, Finished
from ipc.messages.requests import Cancel, Generate, ListModels, Load, Resume
from ipc.server import Server
from ipc.sockets import MAX_MESSAGE
from tests.ipc.clients import DELTAS, connected, everything, free_endpoint
from tests.ipc.serving import SECONDS


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


def test_a_request_that_waits_for_others_is_lost_with_the_connection():
    async def main():
        async with connected() as (_, model, client):
            await client.ask(ListModels(id=0), SECONDS)
            call = client.open(Generate(id=0, model="m", stream=True))
            client._on_event([struct.pack("=HI", zmq.EVENT_DISCONNECTED, 0)])
            assert [reply.code for reply in await everything(call)] == [Code.NEURON_LOST]
            assert not any(isinstance(request, Generate) for _, request in model.requests)

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
