"""Responses in the background, and the clients that leave while one is being kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateway.access.principal import Principal
from gateway.config import GatewayConfig
from gateway.dialects import RequestContext, Services
from gateway.dialects.openai.responses import response
from gateway.dialects.openai.responses.background import Background
from gateway.dialects.openai.responses.replay import Changes, follow
from gateway.dialects.openai.responses.request import read
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.refusals import STORE_UNAVAILABLE
from gateway.store import owners, responses
from gateway.store.response_store import ResponseStore
from gateway.store.retention import Limits
from ipc.errors import CortexError
from tests.streams.sse import read as read_events

ME = RequestContext("r-1", "me")
PATIENCE = 30.0  # seconds


def exchange() -> Exchange:
    return Exchange(Fleet(GatewayConfig()), "r-1", Principal("me"))


async def begin(path: Path, max_size: int = 1 << 30, **fields: Any) -> tuple[ResponseStore, Background, Any]:
    """A store, what works in the background with it, and a request; there is no neuron to answer that."""
    store = ResponseStore(path, Limits(86400.0, max_size))
    services = Services(Fleet(GatewayConfig()), None, None, None, store, None, None, None)
    body = json.dumps({"model": "m", "input": "x", "background": True} | fields).encode()
    return store, Background(services), await read(body, ME, store)


def test_what_is_kept_is_worked_on_though_its_client_left_meanwhile(tmp_path: Path) -> None:
    async def run() -> str:
        store, background, creation = await begin(tmp_path / "responses.db")
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            client = asyncio.create_task(background.start(creation, exchange()))
            for _ in range(3):
                await asyncio.sleep(0)  # it asks the store, which waits for the other
            client.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await client
            other.execute("ROLLBACK")
        async with asyncio.timeout(PATIENCE):
            while True:
                stored = await store.read(responses.get, "me", creation.id)
                if stored is not None and stored.body["status"] not in responses.ACTIVE:
                    store.close()
                    return stored.body["status"]
                await asyncio.sleep(0.01)

    assert asyncio.run(run()) == "failed"


def test_what_cannot_be_kept_is_told_and_not_worked_on(tmp_path: Path) -> None:
    async def run() -> None:
        store, background, creation = await begin(tmp_path / "responses.db", max_size=1)
        with pytest.raises(CortexError) as caught:
            await background.start(creation, exchange())
        assert caught.value.code == STORE_UNAVAILABLE
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        assert await store.read(responses.get, "me", creation.id) is None
        store.close()

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("bug", ["of what ends it", "of what is written"])
def test_a_bug_in_the_way_of_its_end_is_its_end(
    bug: str, stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(body: dict[str, Any], *_: object) -> None:
        if bug == "of what ends it":
            raise TypeError("a bug")
        body |= {"status": "failed", "output": [object()]}  # which is no JSON

    async def run() -> tuple[dict[str, Any], list[tuple[int, bytes]], bool]:
        store, background, creation = await begin(tmp_path / "responses.db", stream=stream)
        monkeypatch.setattr(response, "failed", fail)
        await background.start(creation, exchange())
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        stored = await store.read(responses.get, "me", creation.id)
        events, over, _ = await store.read(responses.follow, "me", creation.id, -1)
        store.close()
        return stored.body, events, over

    body, events, over = asyncio.run(run())
    assert (body["status"], body["error"]["code"], over) == ("failed", "server_error", True)
    assert [data.startswith(b"event: response.failed") for _, data in events[-1:]] == [True] * stream


def test_stream_of_a_response_that_is_deleted_ends_in_an_error(tmp_path: Path) -> None:
    async def run() -> bytes:
        store, _, creation = await begin(tmp_path / "responses.db", stream=True)
        events = [(0, b"event: response.created\ndata: {}"), (1, b"event: response.queued\ndata: {}")]
        more = {"owner": owners.ourselves(), "events": events}
        await store.write(responses.put, store.limits, "me", creation.stored(), **more)
        stream = follow(store, Changes(), "me", creation.id)
        said = await anext(stream)
        await store.write(responses.delete, "me", creation.id)
        async for data in stream:
            said += data
        store.close()
        return said

    last = read_events(asyncio.run(run()))[-1].data
    assert (last["type"], last["sequence_number"], last["code"]) == ("error", 2, "not_found")


def test_stream_whose_store_fails_ends_in_an_error(tmp_path: Path) -> None:
    async def run() -> bytes:
        store, _, creation = await begin(tmp_path / "responses.db")
        store.close()
        store.path.write_bytes(b"no database" * 100)
        store = ResponseStore(store.path, store.limits)
        said = b"".join([data async for data in follow(store, Changes(), "me", creation.id)])
        store.close()
        return said

    [(_, error)] = read_events(asyncio.run(run()))
    assert (error["type"], error["sequence_number"], error["code"]) == ("error", 0, STORE_UNAVAILABLE)
    assert "responses.db" in error["message"]


def test_who_reads_in_the_process_that_writes_looks_when_there_is_something(
    tmp_path: Path,
) -> None:
    async def run() -> tuple[list[str], int]:
        store, _, creation = await begin(tmp_path / "responses.db", stream=True)
        more = {"owner": owners.ourselves(), "events": [(0, b"event: a\ndata: {}")]}
        await store.write(responses.put, store.limits, "me", creation.stored(), **more)
        changes, looks, looked = Changes(), 0, asyncio.Event()
        changes.tell(creation.id)
        read_store = store.read

        async def look(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            news = await read_store(*args)
            if looks == 2:
                looked.set()
            return news

        store.read = look
        told: list[str] = []
        stream = follow(store, changes, "me", creation.id)
        reader = asyncio.create_task(anext(stream))
        told.append((await reader).decode())
        reader = asyncio.create_task(anext(stream))
        await looked.wait()
        await store.write(responses.advance, creation.response, [(1, b"event: b\ndata: {}")])
        changes.tell(creation.id)
        told.append((await reader).decode())
        await stream.aclose()
        store.close()
        return told, looks

    told, looks = asyncio.run(run())
    assert told == ["event: a\ndata: {}\n\n", "event: b\ndata: {}\n\n"]
    assert looks == 3


def test_a_change_that_comes_while_one_reads_is_not_missed() -> None:
    changes = Changes()
    assert changes.next("r") is None
    changes.tell("r")
    asked = changes.next("r")
    changes.tell("r")
    assert asked.is_set()
    assert not changes.next("r").is_set()
    last = changes.next("r")
    changes.end("r")
    assert last.is_set()
    assert changes.next("r") is None
