"""A host that is killed costs a pause and no error, where another has its models."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from ipc.messages.requests import Drain, Load
from tests.gateway.conftest import PATIENCE, GatewayProcess, eventually
from tests.neuron.harness import Neuron, simulated
from tests.ports import free_ports

TOKENS = 150
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
QUESTION = [{"role": "user", "content": "Hello!"}]


def load(neuron: Neuron) -> None:
    with neuron.client() as client:
        client.ask(Load(id=0, model="sim"), PATIENCE)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory):
    """Two hosts with a model loaded, and a gateway of one process before them. The last test kills one."""
    folder, models = tmp_path_factory.mktemp("hosts"), [simulated("sim", step_seconds=0.02)]
    with ExitStack() as stack:
        listen = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
        neurons = [
            stack.enter_context(Neuron(folder / name, models, listen=endpoint))
            for name, endpoint in zip("ab", listen, strict=True)
        ]
        for neuron in neurons:
            load(neuron)
        gateway = GatewayProcess(folder, neurons[0].endpoint, neurons={"b": neurons[1].endpoint})
        stack.callback(gateway.stop)
        yield gateway.wait_ready(), dict(zip(("fake", "b"), neurons, strict=True))


async def stream(client: httpx.AsyncClient, path: str, begun: asyncio.Queue[str] | None = None) -> list[Any]:
    """The events of a stream; `begun` is told its host once some of it is there."""
    body = {"model": "sim", "messages": QUESTION, "max_tokens": TOKENS, "stream": True}
    if path == CHAT:
        body |= {"stream_options": {"include_usage": True}, "n": 2}
    events = []
    async with client.stream("POST", path, json=body, headers={"x-cortex-explain": "1"}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line.removeprefix("data: ")))
                assert "error" not in events[-1], events[-1]
            if len(events) == 12 and begun is not None:
                begun.put_nowait(response.headers["x-cortex-placement"].partition(":")[0])
                begun = None
    return events


def said(path: str, events: list[Any]) -> Any:
    """The texts, and what it came to; but for what of the prompt was cached, which who goes on may find to be
    more: it reads the answer's beginning as well, and another that goes on may have left both there.
    """
    if path == MESSAGES:
        text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
        usage = events[-2]["usage"]
        usage["input_tokens"] += usage.pop("cache_read_input_tokens")
        return text, usage, events[-2]["delta"], events[-1]["type"]
    choices = [choice for event in events for choice in event["choices"]]
    texts = [
        "".join(c["delta"].get("content") or "" for c in choices if c["index"] == index) for index in (0, 1)
    ]
    usage = events[-1]["usage"]
    del usage["prompt_tokens_details"]
    return texts, usage, [c["finish_reason"] for c in choices if c["finish_reason"]]


def test_a_rolling_restart_loses_no_request(hosts) -> None:
    gateway, neurons = hosts
    over = asyncio.Event()

    async def ask_on_and_on(client: httpx.AsyncClient, streamed: bool) -> int:
        count = 0
        while not over.is_set():
            body = {"model": "sim", "messages": QUESTION, "max_tokens": 10, "stream": streamed}
            answer = await client.post(CHAT, json=body)
            assert answer.status_code == 200, answer.text
            assert ("[DONE]" if streamed else "completion_tokens") in answer.text
            assert '"error"' not in answer.text
            count += 1
        return count

    def restart(name: str) -> None:
        neuron = neurons[name]
        with neuron.client() as client:
            client.ask(Drain(id=0), PATIENCE)
        neuron.__exit__(None)
        neuron.__enter__()
        load(neuron)
        eventually(lambda: _serves(gateway, name), f"{name} to serve again")

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=gateway.base, timeout=PATIENCE, trust_env=False) as client:
            asking = [asyncio.create_task(ask_on_and_on(client, number % 2 == 0)) for number in range(6)]
            for name in neurons:
                await asyncio.to_thread(restart, name)
            over.set()
            counts = await asyncio.gather(*asking)
        assert min(counts) > 3

    asyncio.run(scenario())


def test_streams_of_a_worker_that_is_killed_go_on_as_well(hosts) -> None:
    gateway, neurons = hosts

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=gateway.base, timeout=PATIENCE, trust_env=False) as client:
            begun: asyncio.Queue[str] = asyncio.Queue()
            streams = [asyncio.create_task(stream(client, CHAT, begun)) for _ in range(2)]
            places = [await asyncio.wait_for(begun.get(), PATIENCE) for _ in streams]
            victim = neurons[places[0]]
            [worker] = await asyncio.to_thread(victim.workers, "sim")
            os.kill(worker, signal.SIGKILL)
            first, second = [said(CHAT, events) for events in await asyncio.gather(*streams)]
            assert first == second
            assert first[1]["completion_tokens"] == 2 * TOKENS
        await asyncio.to_thread(victim.wait_for, "sim", status="ready")

    asyncio.run(scenario())


def _serves(gateway: GatewayProcess, name: str) -> bool:
    health = httpx.get(f"{gateway.base}/health", trust_env=False, timeout=PATIENCE).json()
    [neuron] = [each for each in health["neurons"] if each["name"] == name]
    return neuron["healthy"] and any(model["status"] == "ready" for model in neuron["models"])


def test_streams_of_a_host_that_is_killed_go_on_at_the_other_and_say_everything_once(hosts) -> None:
    gateway, neurons = hosts

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=gateway.base, timeout=PATIENCE, trust_env=False) as client:
            whole = {path: said(path, await stream(client, path)) for path in (CHAT, MESSAGES)}
            begun: asyncio.Queue[str] = asyncio.Queue()
            paths = [CHAT, MESSAGES] * 3
            streams = [asyncio.create_task(stream(client, path, begun)) for path in paths]
            places = [await asyncio.wait_for(begun.get(), PATIENCE) for _ in streams]
            victim = max(set(places), key=places.count)
            os.kill(neurons[victim].process.pid, signal.SIGKILL)
            for path, events in zip(paths, await asyncio.gather(*streams), strict=True):
                assert said(path, events) == whole[path]

    asyncio.run(scenario())
    assert "to go on after" in gateway.log.read_text()
    assert "status=5" not in gateway.log.read_text()
