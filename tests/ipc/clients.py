"""Clients of a neuron that stands in this process, or in one of its own."""

import asyncio
import contextlib
import subprocess

from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.answers import Usage
from ipc.messages.replies import Cancelled, Delta, Progress
from ipc.messages.requests import Cancel, Generate, Load
from ipc.server import Server
from tests.ipc.serving import SECONDS, Desk, finished
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
