"""Bodies of requests that take long to read."""

import asyncio
import gc
import threading
import warnings
import weakref
from types import SimpleNamespace

import pytest

from gateway.dialects import RequestContext
from gateway.dialects.openai.responses import create
from gateway.dialects.parsing import LARGE, MANY, parsed
from gateway.http import generation
from gateway.http.replies import ReplyResource
from ipc.errors import Code, CortexError

PATIENCE = 60.0  # seconds
AT_ONCE = 2  # bodies that are read


def test_a_large_body_is_read_while_others_are():
    other = threading.Event()

    async def parse(data, context):
        if len(data) < LARGE:
            other.set()
        else:
            assert other.wait(PATIENCE)
        return context.request_id, len(data)

    async def both():
        return await asyncio.gather(
            parsed(parse, bytes(LARGE), RequestContext("large")),
            parsed(parse, b"{}", RequestContext("small")),
        )

    assert asyncio.run(both()) == [("large", LARGE), ("small", 2)]


@pytest.mark.parametrize(
    ("body", "in_loop"),
    [(b"[" * (MANY - 1), True), (b"[" * MANY, False), (b"{[" * (MANY // 2), False), (b"x" * 9000, True)],
)
def test_accounts_take_turns_with_small_bodies_too_where_they_are_dear(body, in_loop):
    async def parse(data, context):
        return threading.current_thread() is threading.main_thread()

    assert asyncio.run(parsed(parse, body, RequestContext("r"))) is in_loop


def test_what_is_wrong_with_a_large_body_is_said():
    async def parse(data, context):
        await asyncio.sleep(0)  # it may wait
        raise CortexError(Code.BAD_REQUEST, "no")

    with pytest.raises(CortexError, match="no"):
        asyncio.run(parsed(parse, bytes(LARGE), RequestContext("r")))


class Body(bytearray):
    """One that can be looked for."""


def test_of_a_request_that_ends_before_a_thread_is_free_nothing_is_left():
    busy, free = threading.Semaphore(0), threading.Event()

    async def parse(data, context):
        busy.release()
        assert free.wait(PATIENCE)

    async def scenario():
        context = RequestContext("r")
        running = [asyncio.create_task(parsed(parse, bytes(LARGE), context)) for _ in range(AT_ONCE)]
        for _ in range(AT_ONCE):
            assert await asyncio.to_thread(busy.acquire, timeout=PATIENCE)
        try:
            body = Body(LARGE)
            held, waiting = weakref.ref(body), asyncio.create_task(parsed(parse, body, context))
            del body
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            del waiting
            gc.collect()
            assert held() is None
        finally:
            free.set()
        await asyncio.gather(*running)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(scenario())


def context_and_exchange(*_):
    return RequestContext("r"), None


def posting(kind, read, monkeypatch):
    """The handler of an address that reads a body with `read`, and has such a one of that size."""

    async def body(req):
        return bytes(req.size)

    monkeypatch.setattr(generation, "open_exchange", context_and_exchange)
    monkeypatch.setattr(create, "read", read)
    if kind is create.CreateResource:
        return kind(SimpleNamespace(read=body, open=context_and_exchange, store=None), None).on_post
    return kind(None, read, SimpleNamespace(read=body), None).on_post


@pytest.mark.parametrize("kind", [generation.GenerationResource, ReplyResource, create.CreateResource])
def test_every_address_that_takes_conversations_reads_large_ones_in_a_thread(kind, monkeypatch):
    in_loop = []

    async def read(data, context, store=None):
        in_loop.append(threading.current_thread() is threading.main_thread())
        raise CortexError(Code.BAD_REQUEST, "no")

    on_post = posting(kind, read, monkeypatch)
    for size in (LARGE - 1, LARGE):
        with pytest.raises(CortexError, match="no"):
            asyncio.run(on_post(SimpleNamespace(size=size), None))
    assert in_loop == [True, False]
