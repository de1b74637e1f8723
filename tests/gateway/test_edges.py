"""A dialect owns its edges: one that nobody knows is served whole, and nothing else changes for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import falcon.asgi
import httpx
import pytest

from gateway.config import GatewayConfig, Listeners, NeuronSettings
from gateway.dialects import Dialect, Renderer, RequestContext
from gateway.dialects.registry import DIALECTS
from gateway.refusals import Refusal
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.replies import Delta, Finished, Progress, Started
from ipc.messages.requests import Generate
from tests.doubles import stands_for
from tests.gateway.conftest import NeuronThread
from tests.gateway.in_process import serving

PATH = "/shout"


@stands_for(Renderer)
class Shouter:
    """Writes its answers; everything in them is in capitals."""

    def whole(self, started: Started, finished: Finished) -> bytes:
        return finished.choices[0].text.upper().encode()

    def waiting(self, progress: Progress | None) -> bytes:
        return b"WAIT\n" if progress is None else f"WAIT, {progress.message.upper()}\n".encode()

    def started(self, started: Started) -> bytes:
        return b"HEAR\n"

    def delta(self, delta: Delta) -> bytes:
        return delta.text.upper().encode()

    def finished(self, finished: Finished) -> bytes:
        return b"\nTHAT WAS IT\n"

    def in_client_words(self, error: CortexError) -> CortexError:
        error.message = error.message.upper()
        return error

    def failed(self, error: CortexError) -> bytes:
        return b"\nALAS\n"


class Remembered:
    """What such a dialect remembers, by its number."""

    def __init__(self, store: dict[bytes, bytes]) -> None:
        self._store = store

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, number: str) -> None:
        if number.encode() not in self._store:
            raise CortexError(Code.BAD_REQUEST, "who knows")
        resp.data = self._store[number.encode()].upper()


@stands_for(Dialect)
class Shouting:
    """A dialect whose requests are `MODEL: TEXT`, or the number of one that it remembers."""

    replies: dict[str, Any] = {}

    def __init__(self) -> None:
        self.generations = {PATH: self.parse}
        self.asked = asyncio.Event()
        self.store: dict[bytes, bytes] = {}
        self.resources = {f"{PATH}/{{number}}": Remembered(self.store)}

    async def parse(self, body: bytes, context: RequestContext) -> tuple[Generate, Shouter]:
        body = bytes(body)
        self.asked.set()
        while body.isdigit():
            await asyncio.sleep(0.001)
            body = self.store.get(body, body)
        model, _, text = body.decode().partition(": ")
        if not text:
            raise CortexError(Code.BAD_REQUEST, "say something")
        request = Generate(id=0, model=model.strip("+"), messages=[Message(role="user", content=text)])
        request.stream = model.startswith("+")
        return request, Shouter()

    def refuse(self, refusal: Refusal) -> tuple[int, bytes]:
        text = f"{refusal.code.upper()} ({refusal.request_id}): {refusal.message.upper()}"
        return 418 if refusal.status == 400 else refusal.status, text.encode()


@pytest.fixture(scope="module")
def make_gateway(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    from gateway.http.application import Gateway

    def make(*dialects: Any) -> Gateway:
        settings = GatewayConfig(
            gateway=Listeners(metrics_listen=None),
            neurons=[NeuronSettings(name="fake", endpoint=neuron.endpoint)],
        )
        return Gateway(settings, (*(lambda services, each=each: each for each in dialects), *DIALECTS))

    return make


def ask(
    make_gateway: Callable[..., Any], *bodies: bytes, path: str = PATH, **headers: str
) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with serving(make_gateway(Shouting())) as client:
            headers.setdefault("content-type", "application/json")
            return [await client.post(path, content=body, headers=headers) for body in bodies]

    return asyncio.run(run())


def test_its_answers_are_in_its_words(make_gateway: Callable[..., Any]) -> None:
    whole, stream = ask(make_gateway, b"echo: one two", b"+echo: one two")
    assert (whole.status_code, whole.text) == (200, "ONE TWO")
    assert (stream.status_code, stream.text) == (200, "HEAR\nONE TWO\nTHAT WAS IT\n")


def test_its_silence_is_in_its_words(
    make_gateway: Callable[..., Any], neuron: NeuronThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = Shouter.waiting
    monkeypatch.setattr(Shouter, "waiting", lambda *args: neuron.let_fail() or say(*args))
    (late,) = ask(make_gateway, b"+late/queue_full: x")
    assert late.text.startswith("WAIT")
    assert late.text.endswith("\nALAS\n")


def test_its_errors_are_in_its_envelope_whoever_raises_them(make_gateway: Callable[..., Any]) -> None:
    headers = {"x-request-id": "me"}
    own, unknown, neurons = ask(make_gateway, b"echo", b"none: x", b"fails/queue_full: x", **headers)
    assert (own.status_code, own.text) == (418, "BAD_REQUEST (me): SAY SOMETHING")
    assert unknown.text.startswith("MODEL_NOT_FOUND (me): ")
    assert neurons.text.startswith("QUEUE_FULL (me): ")
    assert int(neurons.headers["retry-after"]) >= 1
    (form,) = ask(make_gateway, b"echo: x", **{"content-type": "text/plain"})
    assert form.text.startswith("UNSUPPORTED_MEDIA_TYPE (")
    (page,) = ask(make_gateway, b"echo: x", origin="https://example.org")
    assert page.text.startswith("FORBIDDEN (")
    (other,) = ask(make_gateway, b"{}", path="/v1/nothing")
    assert json.loads(other.text)["error"]["code"] == "route_not_found"


def test_it_may_have_resources_of_its_own(make_gateway: Callable[..., Any]) -> None:
    async def run() -> None:
        dialect = Shouting()
        dialect.store[b"7"] = b"remembered"
        async with serving(make_gateway(dialect)) as client:
            assert (await client.get(f"{PATH}/7")).text == "REMEMBERED"
            unknown = await client.get(f"{PATH}/8")
            assert unknown.status_code == 418
            assert unknown.text.endswith("WHO KNOWS")
            assert (await client.put(f"{PATH}/7")).text.startswith("METHOD_NOT_ALLOWED (")

    asyncio.run(run())


def test_reading_a_request_may_wait_while_others_are_served(make_gateway: Callable[..., Any]) -> None:
    async def run() -> None:
        dialect = Shouting()
        async with serving(make_gateway(dialect)) as client:
            headers = {"content-type": "application/json"}
            first = asyncio.create_task(client.post(PATH, content=b"7", headers=headers))
            await dialect.asked.wait()
            other = await client.post(PATH, content=b"echo: other", headers=headers)
            assert other.text == "OTHER"
            assert not first.done()
            dialect.store[b"7"] = b"echo: remembered"
            assert (await first).text == "REMEMBERED"

    asyncio.run(run())
