"""Lines of neurons' logs, on their way to an administrator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from unittest.mock import create_autospec

import pytest

from gateway.config import NeuronSettings
from gateway.dialects.admin import logs
from gateway.fleet.neuron import Neuron
from ipc.call import Call
from ipc.client import NeuronClient
from ipc.messages.replies import LogLines
from ipc.messages.requests import Logs
from tests.doubles import stands_for

PATIENCE = 30.0


@stands_for(Call)
class Talking(Call):
    """A call that reads a neuron's log, which goes on and on until nobody wants it."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        loop = asyncio.get_running_loop()
        super().__init__(1, False, loop, 1.0, cancel=lambda call: self.cancelled.set())

    @property
    def neuron(self) -> Neuron:
        neuron = Neuron(NeuronSettings(name="beast", endpoint="inproc://beast"), None)
        neuron.client = create_autospec(NeuronClient, instance=True)
        neuron.client.open.return_value = self
        return neuron

    async def __aiter__(self) -> AsyncIterator[LogLines]:
        while not self.cancelled.is_set():
            yield LogLines(id=1, lines=["one", "two"])
            await asyncio.sleep(0)


def test_what_nobody_reads_is_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BEHIND", 10)
    monkeypatch.setattr(logs, "UNREAD_SECONDS", 0.05)

    async def scenario() -> None:
        call = Talking()
        lines = logs._lines([call.neuron], Logs(id=0, lines=1, request="", follow=True))
        assert json.loads(await anext(lines)) == {"neuron": "beast", "line": "one"}
        await asyncio.wait_for(call.cancelled.wait(), PATIENCE)
        rest = [json.loads(line) async for line in lines]
        assert len(rest) <= 10 + 3
        assert rest[-1] == {"done": True}
        assert "were not read" in rest[-2]["error"]["message"]

    asyncio.run(scenario())


def test_a_client_that_leaves_takes_its_calls_with_it() -> None:
    async def scenario() -> None:
        call = Talking()
        lines = logs._lines([call.neuron], Logs(id=0, lines=1, request="", follow=True))
        await anext(lines)
        await lines.aclose()
        assert call.cancelled.is_set()

    asyncio.run(scenario())
