"""What a connection with keys keeps from others: what is said on it, and the work of a request."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import zmq

from ipc import zap
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.replies import Failed
from ipc.messages.requests import AnyRequest, Load
from ipc.server import Peer, Server
from tests.gateway.fleets import eventually
from tests.ipc.links import Link

SECONDS = 60  # how long a test waits for what must come
QUESTION, ANSWER = "a-model-that-nobody-knows", "an answer for one alone"


class Tap(Link):
    """A link that keeps all that passes."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.heard = b""

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.heard += data
                writer.write(data)


def keys() -> tuple[str, str]:
    """(public, secret)"""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


class Asked:
    """A server that says how often it was asked."""

    def __init__(self, **options: object) -> None:
        self.requests: list[AnyRequest] = []
        self.server = Server("tcp://127.0.0.1:0", self._answer, lambda peer: None, **options)

    def _answer(self, peer: Peer, request: AnyRequest) -> None:
        self.requests.append(request)
        peer.send(Failed(id=request.id, code=Code.MODEL_NOT_FOUND, message=ANSWER))

    @contextlib.asynccontextmanager
    async def tapped(self):
        self.server.start()
        tap = Tap(int(self.server.endpoint.rpartition(":")[2]))
        try:
            yield tap, await tap.start()
        finally:
            await tap.close()
            self.server.close()


async def ask(endpoint: str, seconds: float, **options: str | None) -> str:
    """What is said to one who asks; the error of the client where nothing is."""
    client = NeuronClient(endpoint, **options)
    client.start()
    try:
        await client.ask(Load(id=0, model=QUESTION), seconds)
    except CortexError as error:
        return error.message
    finally:
        client.close()
    raise AssertionError


@pytest.mark.parametrize("sealed", [True, False])
def test_what_passes_is_for_nobody_else_where_there_are_keys(sealed: bool) -> None:
    (ours, our_secret), (theirs, their_secret) = keys(), keys()
    asked = Asked(**{"secret": their_secret, "allowed": [ours]} if sealed else {})

    async def main() -> None:
        options = {"secret": our_secret, "server_public": theirs} if sealed else {}
        async with asked.tapped() as (tap, endpoint):
            assert await ask(endpoint, SECONDS, **options) == ANSWER
            assert len(tap.heard) > 200
            for said in (QUESTION, ANSWER):
                assert (said.encode() in tap.heard) is not sealed

    asyncio.run(main())


@pytest.mark.parametrize("who", ["another key", "no key", "another server's key"])
def test_who_has_not_the_right_keys_gets_nothing_and_no_request_of_his_is_seen(who: str) -> None:
    (ours, our_secret), (theirs, their_secret), (_, other_secret) = keys(), keys(), keys()
    asked = Asked(secret=their_secret, allowed=[ours])
    options = {
        "another key": {"secret": other_secret, "server_public": theirs},
        "no key": {},
        "another server's key": {"secret": our_secret, "server_public": ours},
    }[who]

    async def main() -> None:
        async with asked.tapped() as (_, endpoint):
            assert ANSWER not in await ask(endpoint, 0.5, **options)
            right = {"secret": our_secret, "server_public": theirs}
            assert await ask(endpoint, SECONDS, **right) == ANSWER  # others are served meanwhile
            assert len(asked.requests) == 1

    asyncio.run(main())


def test_strangers_who_come_again_and_again_fill_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (ours, _), (theirs, their_secret) = keys(), keys()
    asked, context = Asked(secret=their_secret, allowed=[ours]), zmq.Context()

    def come() -> zmq.Socket:
        socket = context.socket(zmq.DEALER)
        public, secret = zmq.curve_keypair()
        socket.curve_publickey, socket.curve_secretkey = public, secret
        socket.curve_serverkey, socket.linger = theirs.encode(), 0
        socket.connect(asked.server.endpoint)
        return socket

    async def main() -> None:
        asked.server.start()
        gatekeeper = asked.server._gatekeeper
        try:
            monkeypatch.setattr(zap, "TELL_SECONDS", 1000.0)
            strangers = [come() for _ in range(10)]
            await eventually(lambda: gatekeeper.refused == 10)
            gatekeeper._tell_at = 0.0
            strangers.append(come())
            await eventually(lambda: gatekeeper.refused == 11)
        finally:
            for stranger in strangers:
                stranger.close()
            asked.server.close()

    asyncio.run(main())
    told = [line.getMessage() for line in caplog.records if line.name == "ipc.zap"]
    assert [line.rpartition(" ")[2] for line in told] == ["others=0", "others=9"]
