"""Clients and a neuron with bad links between them: `python -m tests.ipc.links SECONDS SEED`.

A process of its own, because what it must not do is abort. It says what it saw, as JSON, and ends with 1
where that is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from contextlib import suppress

from ipc.call import Call
from ipc.client import NeuronClient
from ipc.errors import CortexError
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.replies import TERMINAL, Cancelled, Delta, Done, Finished
from ipc.messages.requests import AnyRequest, Cancel, Generate, ListModels, Watch
from ipc.server import Peer, Server

CLIENTS = 2
STREAMS = 25  # of each client at once
DELTAS = 60  # of each stream
SILENCE = 1.0  # seconds
PATIENCE = 20.0  # seconds: for one request, and for the end


class Link:
    """A TCP proxy in front of a port, which can be cut, stalled and closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.refuses = False
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._listener.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()  # a frozen one waits for ever
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """End every connection at once, in the middle of whatever is on its way."""
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """From now on nothing comes through the connections that there are; new ones are well."""
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    async def stall(self, seconds: float) -> None:
        self._flows.clear()
        await asyncio.sleep(seconds)
        self._flows.set()

    async def refuse(self, seconds: float) -> None:
        self.refuses = True
        self.cut()
        await asyncio.sleep(seconds)
        self.refuses = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.refuses:
                raise ConnectionRefusedError
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # nobody listens there now
            writer.transport.abort()
            return
        self._writers |= {writer, other_writer}
        flows = self._flows
        pumps = [
            asyncio.create_task(self._pump(reader, other_writer, flows)),
            asyncio.create_task(self._pump(other_reader, writer, flows)),
        ]
        self._pumps.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, other_writer):
            each.transport.abort()
            self._writers.discard(each)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(3000):  # so that a cut finds half a message
                await flows.wait()
                writer.write(data)
                await writer.drain()


class Neuron:
    """Streams numbered deltas, a few at a turn of the loop."""

    def __init__(self) -> None:
        self.server = Server("tcp://127.0.0.1:0", self._on_request, self._on_gone)
        self.server.start()
        self.work: dict[tuple[Peer, int], asyncio.Task[None]] = {}
        self.lost = 0  # peers that went with requests open

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        key = (peer, request.id)
        match request:
            case Generate():
                self.work[key] = task = asyncio.create_task(self._stream(peer, request))
                task.add_done_callback(lambda _: self.work.pop(key))
            case Cancel() if key in self.work:
                self.work[key].cancel()
                peer.send(Cancelled(id=request.id))
            case ListModels():
                peer.send(Done(id=request.id))

    def _on_gone(self, peer: Peer) -> None:
        self.lost += 1
        for key, task in list(self.work.items()):
            if key[0] is peer:
                task.cancel()

    async def _stream(self, peer: Peer, request: Generate) -> None:
        for number in range(DELTAS):
            peer.send(Delta(id=request.id, tokens=number, text=request.model))
            await asyncio.sleep(0.001)
        done = [Choice(reason="stop")]
        peer.send(Finished(id=request.id, choices=done, usage=Usage(), timings=Timings()))


class Follower:
    """One client's requests, each followed to its one end."""

    def __init__(self, client: NeuronClient, chance: random.Random) -> None:
        self.client = client
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []
        self.calls: list[Call] = []  # that ended: nothing may come for them any more
        self._chance = chance

    async def run(self, until: float) -> None:
        """Make requests until then; on a machine that is too slow for one until the first is answered whole,
        for the link has healed by then."""
        await asyncio.gather(*(self._one_after_another(until) for _ in range(STREAMS)))

    async def _one_after_another(self, until: float) -> None:
        while (now := time.monotonic()) < until or (not self.ends["Finished"] and now < until + PATIENCE):
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._follow()
            except TimeoutError:
                self.faults.append("a request did not end")
            await asyncio.sleep(0.001)

    async def _follow(self) -> None:
        name = os.urandom(4).hex() * self._chance.choice((1, 100))
        call = self.client.open(Generate(id=0, model=name, prompt="", stream=True))
        leaves = self._chance.randrange(4 * DELTAS)
        due, ends = 0, 0
        async for reply in call:
            if isinstance(reply, Delta):
                if ends or (reply.tokens, reply.text) != (due, name):
                    self.faults.append(f"delta {reply.tokens} came where {due} was due")
                due = reply.tokens + 1
                if due == leaves:
                    call.cancel()
            elif isinstance(reply, TERMINAL):
                ends += 1
                self.ends[type(reply).__name__] += 1
        if ends != 1:
            self.faults.append(f"{ends} ends")
        self.calls.append(call)


async def answered(client: NeuronClient) -> None:
    """Until the neuron answers; a client that is slow to connect again calls it lost meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(CortexError):
                await client.ask(ListModels(id=0), PATIENCE)
                return


async def main(seconds: float, seed: int) -> dict[str, object]:
    chance = random.Random(seed)
    neuron = Neuron()
    link = Link(int(neuron.server.endpoint.rpartition(":")[2]))
    endpoint = await link.start()
    followers = []
    for _ in range(CLIENTS):
        client = NeuronClient(endpoint, silence=SILENCE)
        client.start()
        client.open(Watch(id=0))  # something is owed at every moment, as a gateway always has it
        followers.append(Follower(client, chance))
    until = time.monotonic() + seconds
    running = [asyncio.create_task(follower.run(until)) for follower in followers]
    faults: Counter[str] = Counter()
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        fault = chance.choice(("cut", "cut", "refuse", "stall", "long stall")) if faults else "cut"
        faults[fault] += 1
        if fault == "cut":
            link.cut()
        elif fault == "refuse":
            await link.refuse(chance.uniform(0, 0.3))
        else:
            await link.stall(chance.uniform(0, 0.2) if fault == "stall" else SILENCE * 1.2)
    await asyncio.gather(*running)
    for follower in followers:  # the link has healed
        await answered(follower.client)
    late = sum(len(call._replies) for follower in followers for call in follower.calls)
    for follower in followers:
        follower.client.close()
    for _ in range(int(PATIENCE / 0.05)):
        if not neuron.work and not neuron.server._peers:
            break
        await asyncio.sleep(0.05)
    left = len(neuron.work) + len(neuron.server._peers) + len(neuron.server._blocked)
    neuron.server.close()
    await link.close()
    return {
        "links": faults,
        "lost": neuron.lost,
        "ends": sum((follower.ends for follower in followers), Counter()),
        "faults": [fault for follower in followers for fault in follower.faults][:20],
        "late": late,
        "left": left,
    }


if __name__ == "__main__":
    seen = asyncio.run(main(float(sys.argv[1]), int(sys.argv[2])))
    print(json.dumps(seen))
    sys.exit(1 if seen["faults"] or seen["late"] or seen["left"] else 0)
