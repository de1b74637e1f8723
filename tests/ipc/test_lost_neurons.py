"""Neurons that are killed, stand still or are cut off: calls end, and the next connection serves."""

import asyncio
import signal
import subprocess

from ipc.client import NeuronClient
from ipc.errors import Code
from ipc.messages.replies import Done, Failed
from ipc.messages.requests import Generate, ListModels
from tests.ipc.clients import connected, everything, serve
from tests.ipc.links import Link
from tests.ipc.serving import SECONDS


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
from ipc.call import Call
from ipc.client import NeuronClient
from ipc.messages.replies import *
from ipc.messages.requests import *
from ipc.server import Server

go, sent, enough = threading.Event(), threading.Event(), threading.Event()
plain_push = Call.push

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

Call.push = push

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
