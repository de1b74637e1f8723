"""The client for who has no event loop."""

import subprocess

import pytest

from ipc.blocking_client import BlockingClient
from ipc.errors import Code, CortexError
from ipc.messages.replies import Finished
from ipc.messages.requests import CountTokens, Generate, ListModels, Load
from tests.ipc.clients import free_endpoint
from tests.ipc.serving import SECONDS

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
