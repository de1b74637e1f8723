"""However many ask for a model first, and of however many gateway processes, one host loads it, once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.gateway.conftest import PATIENCE, GatewayProcess
from tests.neuron.harness import Neuron, simulated

REQUESTS = 200
PROCESSES = 4


async def ask_all(base: str, model: str) -> tuple[Counter[int], Counter[str]]:
    """Statuses, and what was said of where each went."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=PATIENCE, trust_env=False) as client:

        async def ask(number: int) -> httpx.Response:
            streamed = body | {"stream": number % 2 == 0}
            return await client.post("/v1/chat/completions", json=streamed, headers={"x-cortex-explain": "1"})

        answers = await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
    whole = [answer for answer in answers if "[DONE]" in answer.text or "usage" in answer.text]
    assert len(whole) == REQUESTS
    hosts = Counter(answer.headers["x-cortex-placement"] for answer in answers)
    return Counter(answer.status_code for answer in answers), hosts


def test_the_first_requests_over_four_processes_and_three_neurons_cause_one_load(tmp_path: Path) -> None:
    models = [simulated("cold", load_seconds=1.0, settings={"max_sequences": 16})]
    queue = {"limit": REQUESTS, "account_limit": REQUESTS}
    with ExitStack() as stack:
        neurons = [
            stack.enter_context(Neuron(tmp_path / f"n{number}", models, queue=queue)) for number in range(3)
        ]
        others = {f"n{number}": neurons[number].endpoint for number in (1, 2)}
        gateway = GatewayProcess(tmp_path, neurons[0].endpoint, neurons=others, workers=PROCESSES)
        stack.callback(gateway.stop)
        gateway.wait_ready()
        statuses, hosts = asyncio.run(ask_all(gateway.base, "cold"))
        assert statuses == {200: REQUESTS}
        assert len({placement.partition(":")[0] for placement in hosts}) == 1, hosts
        loads = [neuron.log.count("model loaded model=cold ") for neuron in neurons]
        assert sorted(loads) == [0, 0, 1]
