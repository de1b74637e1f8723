"""Lines of neurons' logs, on their way to an administrator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from gateway.dialects.admin import logs
from ipc.messages import LogLines, Logs

PATIENCE = 30.0


class Talking:
    """A neuron whose log goes on and on, until nobody wants it; and the call that reads it."""

    def __init__(self) -> None:
        self.name, self.client = "beast", SimpleNamespace(open=lambda request: self)
        self.cancelled = asyncio.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[LogLines]:
        while not self.cancelled.is_set():
            yield LogLines(id=1, lines=["one", "two"])
            await asyncio.sleep(0)


def test_what_nobody_reads_is_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BEHIND", 10)
    monkeypatch.setattr(logs, "UNREAD_SECONDS", 0.05)

    async def scenario() -> None:
        neuron = Talking()
        lines = logs._lines([neuron], Logs(id=0, lines=1, request="", follow=True))
        assert json.loads(await anext(lines)) == {"neuron": "beast", "line": "one"}
        await asyncio.wait_for(neuron.cancelled.wait(), PATIENCE)
        rest = [json.loads(line) async for line in lines]
        assert len(rest) <= 10 + 3
        assert rest[-1] == {"done": True}
        assert "were not read" in rest[-2]["error"]["message"]

    asyncio.run(scenario())


def test_a_client_that_leaves_takes_its_calls_with_it() -> None:
    async def scenario() -> None:
        neuron = Talking()
        lines = logs._lines([neuron], Logs(id=0, lines=1, request="", follow=True))
        await anext(lines)
        await lines.aclose()
        assert neuron.cancelled.is_set()

    asyncio.run(scenario())
