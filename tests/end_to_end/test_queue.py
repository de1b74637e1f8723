"""Those who wait for a busy model, from HTTP to the worker and back, in every dialect."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from ipc.messages.replies import Started
from tests.end_to_end.harness import LONG
from tests.gateway.conftest import PATIENCE, GatewayProcess
from tests.neuron.harness import Neuron, chat, simulated, wait_until

FLOOD = 100  # requests of one caller
WAIT = 1.5  # seconds that a request which is not streamed waits
MESSAGES = {"messages": [{"role": "user", "content": "Hello!"}]}


class Dialect(NamedTuple):
    body: dict[str, Any]
    end: str  # of a stream


DIALECTS = {
    "/v1/chat/completions": Dialect(MESSAGES | {"max_tokens": 2}, "[DONE]"),
    "/v1/completions": Dialect({"prompt": "Hello!", "max_tokens": 2}, "[DONE]"),
    "/v1/responses": Dialect({"input": "Hello!", "max_output_tokens": 16, "store": False}, "completed"),
    "/v1/messages": Dialect(MESSAGES | {"max_tokens": 2}, "message_stop"),
}
PLACE = re.compile(r"^: queued number (\d+) of (\d+) in the line for this model", re.M)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, GatewayProcess]]:
    """A gateway, and a neuron whose model does one thing at a time."""
    folder = tmp_path_factory.mktemp("queue")
    with ExitStack() as stack:
        models = [simulated("narrow", step_seconds=0.002, settings={"max_sequences": 1})]
        neuron = stack.enter_context(Neuron(folder / "neuron", models))
        gateway = GatewayProcess(folder, neuron.endpoint, load_wait_seconds=WAIT)
        stack.callback(gateway.stop)
        yield neuron, gateway.wait_ready()


async def stream(client: httpx.AsyncClient, path: str) -> str:
    answer = await client.post(path, json=DIALECTS[path].body | {"model": "narrow", "stream": True})
    return answer.text


async def whole(client: httpx.AsyncClient, path: str) -> httpx.Response:
    return await client.post(path, json=DIALECTS[path].body | {"model": "narrow"})


def test_who_waits_is_told_its_place_or_when_to_come_again_and_then_served(
    system: tuple[Neuron, GatewayProcess],
) -> None:
    neuron, gateway = system

    async def ask() -> tuple[list[str], list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=gateway.base, timeout=PATIENCE, trust_env=False) as client:
            streams = [asyncio.create_task(stream(client, path)) for path in DIALECTS]
            refused = await asyncio.gather(*(whole(client, path) for path in DIALECTS))
            blocker.close()
            return await asyncio.gather(*streams), refused

    with neuron.client() as client:
        blocker = client.stream(chat("narrow", LONG), PATIENCE)
        assert any(isinstance(reply, Started) for reply in blocker)
        neuron.wait_for("narrow", running=1)
        streams, refused = asyncio.run(ask())
    for answer in refused:
        assert answer.status_code == (529 if answer.url.path == "/v1/messages" else 503)
        assert 1 <= int(answer.headers["Retry-After"]) <= 600
        assert re.search(r"number \d+ of \d+ in the line", answer.text)
    for path, text in zip(DIALECTS, streams, strict=True):
        told = PLACE.findall(text)
        assert len(told) >= 2, text
        assert all(1 <= int(place) <= int(waiting) <= 8 for place, waiting in told)
        assert DIALECTS[path].end in text
    neuron.wait_for("narrow", running=0, waiting=0)


def test_neither_another_caller_nor_another_conversation_waits_for_a_flood_to_end(
    system: tuple[Neuron, GatewayProcess],
) -> None:
    neuron, gateway = system

    async def ask(client: httpx.AsyncClient, name: str, key: str, **headers: str) -> None:
        answer = await client.post(
            "/v1/completions",
            json={"model": "narrow", "prompt": "Hello!", "max_tokens": 1, "stream": True},
            headers={"Authorization": f"Bearer {key}", "x-request-id": name} | headers,
        )
        assert answer.status_code == 200, answer.text

    async def everybody() -> None:
        limits = httpx.Limits(max_connections=FLOOD + 3)
        async with (
            httpx.AsyncClient(
                base_url=gateway.base, timeout=PATIENCE, trust_env=False, limits=limits
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(FLOOD):
                group.create_task(ask(client, "flood", "one"))
            await asyncio.to_thread(neuron.wait_for, "narrow", waiting=FLOOD)
            group.create_task(ask(client, "talk", "one", **{"x-session-id": "talk"}))
            group.create_task(ask(client, "second", "two"))
            group.create_task(ask(client, "third", "three"))
            await asyncio.to_thread(neuron.wait_for, "narrow", waiting=FLOOD + 3)
            blocker.close()

    with neuron.client() as client:
        blocker = client.stream(chat("narrow", LONG), PATIENCE)
        assert any(isinstance(reply, Started) for reply in blocker)
        neuron.wait_for("narrow", running=1)
        asyncio.run(everybody())

    def ended() -> list[str]:
        """Who was served when, as the neuron says: on the way back they may overtake each other."""
        return re.findall(r"request finished id=\d+ trace=(flood|talk|second|third) ", neuron.log)

    wait_until(lambda: len(ended()) == FLOOD + 3, "a line for each")
    assert max(map(ended().index, ("talk", "second", "third"))) < 20  # one was ready in the worker


def test_what_runs_and_what_waits_when_the_neuron_ends_is_answered_by_the_next_one(tmp_path: Path) -> None:
    models = [simulated("narrow", step_seconds=0.005, settings={"max_sequences": 1})]
    counted = {"stream_options": {"include_usage": True}}
    asked = [
        MESSAGES
        | {"model": "narrow", "max_tokens": tokens, "stream": streamed}
        | (counted if streamed else {})
        for tokens, streamed in ((700, True), (10, True), (11, False), (12, True))
    ]

    async def ask(gateway: GatewayProcess, stack: ExitStack, names: str) -> None:
        neuron = stack.enter_context(Neuron(tmp_path / names[0], models, listen=f"ipc://{tmp_path}/neuron"))
        gateway.wait_ready()
        for name, number in zip(names[1:], (signal.SIGKILL, signal.SIGTERM), strict=True):
            async with httpx.AsyncClient(base_url=gateway.base, timeout=PATIENCE, trust_env=False) as client:
                asking = []
                for body in asked:
                    asking.append(asyncio.create_task(client.post("/v1/chat/completions", json=body)))
                    waiting = len(asking) - 1
                    await asyncio.to_thread(neuron.wait_for, "narrow", running=1, waiting=waiting)
                neuron.process.send_signal(number)
                await asyncio.to_thread(neuron.process.wait, PATIENCE)
                neuron = stack.enter_context(
                    Neuron(tmp_path / name, models, listen=f"ipc://{tmp_path}/neuron")
                )
                for body, answer in zip(asked, await asyncio.gather(*asking), strict=True):
                    assert (answer.status_code, '"error"' in answer.text) == (200, False), answer.text
                    assert f'"completion_tokens":{body["max_tokens"]}' in answer.text

    gateway = GatewayProcess(tmp_path, f"ipc://{tmp_path}/neuron", lost_wait_seconds=PATIENCE)
    with ExitStack() as stack:
        stack.callback(gateway.stop)
        asyncio.run(ask(gateway, stack, "abc"))
