"""A server in this process, whose handler is a test, and clients that speak frames."""

import asyncio
import contextlib

import msgspec
import zmq
import zmq.asyncio

from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.framing import HEADER
from ipc.messages.replies import AnyReply, Done, Finished
from ipc.messages.requests import ListModels
from ipc.server import Server

SECONDS = 60  # how long a test waits for what must come


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
async def serving(handler=None, clients=1, endpoint="tcp://127.0.0.1:0", **options):
    """(server, desk, *raw clients)"""
    desk = Desk()
    server = Server(endpoint, handler or desk.handle, desk.on_gone, **options)
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
