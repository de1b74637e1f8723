"""The server: each request gets exactly one terminal reply, and no peer can harm it or another peer."""

import asyncio

import msgspec
import pytest

from ipc import server as server_module
from ipc.errors import Code, CortexError
from ipc.messages.framing import HEADER
from ipc.messages.replies import Cancelled, Delta, Done, Failed, Finished, Heartbeat, State, TokenCount
from ipc.messages.requests import (
    AnyRequest,
    Cancel,
    CountTokens,
    Generate,
    Health,
    ListModels,
    Load,
    Logs,
    Watch,
)
from tests.ipc.one_of_each import ONE_OF_EACH
from tests.ipc.serving import finished, serving


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


def test_what_is_too_much_for_one_message_comes_in_several(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_MESSAGE", 1000)

    async def main():
        async with serving() as (_, desk, client):
            await client.send(*(Generate(id=number, model="m") for number in range(1, 6)))
            for _ in range(5):
                peer, _ = await desk.next()
            for number in range(1, 6):
                peer.send(finished(number, "x" * 300))
            assert [(await client.receive()).id for _ in range(5)] == [1, 2, 3, 4, 5]
            assert client.messages > 1
            assert await client.quiet()

    asyncio.run(main())


def test_a_reply_that_is_too_large_for_any_message_ends_its_request_alone(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_MESSAGE", 1000)

    async def main():
        async with serving() as (_, desk, client):
            await client.send(Generate(id=1, model="m"), Generate(id=2, model="m"))
            peer, _ = await desk.next()
            await desk.next()
            peer.send(Delta(id=1, tokens=1, text="x" * 1000))
            peer.send(Delta(id=2, tokens=1, text="fine"))
            peer.send(finished(2, "y" * 1000))
            replies = [await client.receive() for _ in range(3)]
            assert [(type(each), each.id) for each in replies] == [(Failed, 1), (Delta, 2), (Failed, 2)]
            assert replies[0].code == Code.INTERNAL
            assert (await desk.next())[1] == Cancel(id=1)
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
