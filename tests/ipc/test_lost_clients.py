"""A client that left, was killed or does not read: the handler hears of it once, and nothing stays."""

import asyncio
import contextlib
import signal
import subprocess

import zmq

from ipc import server as server_module
from ipc.messages.replies import Delta, Failed
from ipc.messages.requests import Generate, Watch
from tests.ipc.serving import SECONDS, RawClient, finished, serving


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
from ipc.blocking_client import BlockingClient
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
