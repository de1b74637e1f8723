"""Bodies of requests that take long to read."""

import asyncio
import gc
import threading
import time
import warnings
import weakref
from types import SimpleNamespace

import pytest

from gateway.config import GatewayConfig, Listeners, NeuronSettings
from gateway.dialects import RequestContext
from gateway.dialects.openai.responses import create
from gateway.dialects.parsing import LARGE, MANY, parsed
from gateway.fleet import attempts, exchange
from gateway.http import generation
from gateway.http.replies import ReplyResource
from gateway.http.request import Request
from ipc.errors import Code, CortexError
from tests.gateway.in_process import serving

PATIENCE = 20.0  # seconds
AT_ONCE = 2  # bodies that are read
MOST = 2 * LARGE  # bytes of a body, in one test


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


def bodies():
    """Addresses, and bodies that are refused there: by us before a neuron is asked and after, and by it."""
    refusing, breaking, none = "fails/context_length_exceeded", "breaks/worker_died", "nothing"
    chat = {"messages": [{"role": "user", "content": "one two"}]}
    for stream in (False, True):
        for model in (refusing, "fails/queue_full", breaking, none):
            yield "/v1/chat/completions", {"model": model, "stream": stream} | chat
        yield "/v1/responses", {"model": refusing, "stream": stream, "input": "one two"}
    yield "/v1/chat/completions", {"model": "echo", "temperature": "x"} | chat
    yield "/v1/chat/completions", {"model": "echo", "temperature": "x", "user": "y" * LARGE} | chat
    yield "/v1/messages", {"model": refusing, "max_tokens": 3} | chat
    yield "/v1/messages/count_tokens", {"model": none} | chat
    yield "/v1/responses", {"model": none, "input": "one two"}
    yield "/v1/embeddings", {"model": none, "input": "one two"}
    yield "/tokenize", {"model": none, "prompt": "one two"}
    yield "/v1/chat/completions", {"model": "echo", "user": "y" * MOST} | chat


def test_what_a_refused_request_held_goes_with_it_and_waits_for_no_search_for_garbage(
    neuron, tmp_path, monkeypatch
):
    from gateway.http.application import Gateway

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(attempts, "RESUMES", 0)
    settings = GatewayConfig(
        gateway=Listeners(metrics_listen=None, body_limit=MOST),
        neurons=[NeuronSettings(name="fake", endpoint=neuron.endpoint)],
    )

    async def ask(client, path, body):
        async with client.stream("POST", path, json=body) as answer:
            async for _ in answer.aiter_raw():
                neuron.let_fail()

    async def scenario():
        async with serving(Gateway(settings, sends_aside=False)) as client:
            for path, body in bodies():
                gc.collect()
                await ask(client, path, body)
                deadline = time.monotonic() + PATIENCE  # a thread may still be on its way out
                while any(isinstance(each, exchange.Exchange | Request) for each in gc.get_objects()):
                    assert time.monotonic() < deadline, (path, body)
                    await asyncio.sleep(0.01)

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
