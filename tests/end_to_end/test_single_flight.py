"""However many ask for models first, and of however many gateway processes, one host loads each, once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.gateway.conftest import PATIENCE, GatewayProcess
from tests.neuron.harness import Neuron, simulated

REQUESTS = 200
PROCESSES = 4
AT_ONCE = ("first", "second", "third")  # models of which a host has room for one


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Neuron], GatewayProcess]]:
    """Three neurons, behind a gateway of several processes."""
    folder = tmp_path_factory.mktemp("fleet")
    models = [simulated("cold", load_seconds=1.0, settings={"max_sequences": 16})]
    models += [simulated(name, load_seconds=1.0, memory="900MiB") for name in AT_ONCE]
    settings = {"queue": {"limit": REQUESTS, "account_limit": REQUESTS}, "cpu": {"memory": "1GiB"}}
    with ExitStack() as stack:
        neurons = [
            stack.enter_context(Neuron(folder / f"n{number}", models, **settings)) for number in range(3)
        ]
        others = {f"n{number}": neurons[number].endpoint for number in (1, 2)}
        gateway = GatewayProcess(folder, neurons[0].endpoint, neurons=others, workers=PROCESSES)
        stack.callback(gateway.stop)
        yield neurons, gateway.wait_ready()


async def ask_all(base: str, *models: str) -> tuple[Counter[int], dict[str, set[str]]]:
    """Statuses, and where requests to each model went."""
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=PATIENCE, trust_env=False) as client:

        async def ask(number: int) -> httpx.Response:
            asked = body | {"model": models[number % len(models)], "stream": number % 2 == 0}
            return await client.post("/v1/chat/completions", json=asked, headers={"x-cortex-explain": "1"})

        answers = await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
    whole = [answer for answer in answers if "[DONE]" in answer.text or "usage" in answer.text]
    assert len(whole) == REQUESTS
    hosts: dict[str, set[str]] = {model: set() for model in models}
    for number, answer in enumerate(answers):
        hosts[models[number % len(models)]].add(answer.headers["x-cortex-placement"].partition(":")[0])
    return Counter(answer.status_code for answer in answers), hosts


@pytest.mark.parametrize("models", [("cold",), AT_ONCE])
def test_first_requests_over_four_processes_and_three_neurons_cause_one_load_of_each_model(
    fleet: tuple[list[Neuron], GatewayProcess], models: tuple[str, ...]
) -> None:
    neurons, gateway = fleet
    statuses, hosts = asyncio.run(ask_all(gateway.base, *models))
    assert statuses == {200: REQUESTS}
    assert [len(each) for each in hosts.values()] == [1] * len(models), hosts
    loads = [sum(neuron.log.count(f"model loaded model={model} ") for neuron in neurons) for model in models]
    assert loads == [1] * len(models)
