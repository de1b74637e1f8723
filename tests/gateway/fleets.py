"""Fleets of false neurons, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from gateway.config import EvictionPolicy, GatewayConfig, Listeners, NeuronSettings
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from ipc.messages.conversation import Message
from ipc.messages.replies import Failed, Quoted
from ipc.messages.requests import (
    AnyRequest,
    CountTokens,
    Generate,
)
from ipc.server import Peer
from tests.gateway.fake_neuron import FakeNeuron


@asynccontextmanager
async def fleet_of(
    *neurons: FakeNeuron, lost_wait_seconds: float = 0.0, **settings: object
) -> AsyncIterator[Fleet]:
    """A fleet of those neurons, which are started here; `settings` are of a gateway's file."""
    for neuron in neurons:
        neuron.start()
    usual = {
        "gateway": Listeners(lost_wait_seconds=lost_wait_seconds),
        "eviction": EvictionPolicy(strategy="priority", defrag_after_cycles=7),
        "neurons": [NeuronSettings(name=neuron.name, endpoint=neuron.endpoint) for neuron in neurons],
    }
    fleet = Fleet(GatewayConfig(**usual | settings))
    try:
        await fleet.start(patience=10)
        yield fleet
    finally:
        await fleet.stop()
        for neuron in neurons:
            neuron.close()


async def eventually(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


def count(model: str) -> CountTokens:
    return CountTokens(id=0, model=model, messages=[Message(role="user", content="one two")])


def generate(model: str) -> Generate:
    return Generate(id=0, model=model, prompt="one two")


class Naming(FakeNeuron):
    """Tells the ids of tokens."""

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if isinstance(request, Generate):
            request.return_token_ids = True
        super()._on_request(peer, request)


def quote(verdict: str, seconds: float | None = None, **fields) -> Quoted:
    return Quoted(id=0, verdict=verdict, seconds=seconds, **fields)


def host(name: str, said: Quoted | Failed | None, **settings) -> FakeNeuron:
    """A neuron with `echo` unloaded, and what it quotes for it."""
    status = {"echo": "unloaded"}
    return FakeNeuron(name=name, models=("echo",), status=status, quotes={"echo": said}, **settings)


async def ask(fleet: Fleet, model: str = "echo") -> str:
    exchange = Exchange(fleet, "r")
    try:
        await exchange.send(generate(model))
        return (await exchange.whole()).choices[0].text
    finally:
        exchange.close()
