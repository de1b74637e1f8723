"""What who watches a neuron is told, and when."""

from __future__ import annotations

import asyncio
import sys
from unittest.mock import create_autospec

from ipc.messages.replies import State
from ipc.messages.requests import Eviction, Hello, Watch
from ipc.messages.state import ModelState
from ipc.server import Peer
from neuron import watches
from neuron.config import NeuronConfig
from neuron.memory.parking import Parking
from neuron.memory.room import Room
from neuron.models.finder import Finder
from neuron.models.manager import ModelManager
from neuron.preparation.preparation import Preparation
from neuron.recent_log import RecentLog
from neuron.service import Service
from tests.doubles import stands_for


@stands_for(ModelManager)
class Models(ModelManager):
    """As much of a model manager as a watch sees."""

    def __init__(self, status: dict[str, str], *, searched: bool = True) -> None:
        self.status, self.searched = status, searched
        self.room = create_autospec(Room, instance=True)
        self.room.devices.return_value = []
        self.parking = create_autospec(Parking, instance=True, held=0, budget=0)
        self.finder = create_autospec(Finder, instance=True, catalogue_version="")

    def states(self) -> list[ModelState]:
        return [ModelState(id=name, status=status) for name, status in self.status.items()]

    def prefixes(self) -> dict[str, dict[bytes, int]]:
        return {}

    take_prefix_news = prefixes


@stands_for(Peer)
class Watcher(Peer):
    def __init__(self) -> None:
        super().__init__(None, b"")
        self.sent: list[State] = []

    def send(self, reply: State) -> None:
        self.sent.append(reply)

    def told(self) -> list[tuple[bool, dict[str, str], list[str]]]:
        """What came since the last time."""
        states, self.sent = self.sent, []
        return [(each.whole, {model.id: model.status for model in each.models}, each.gone) for each in states]


async def turn() -> None:
    await asyncio.sleep(0.001)
    await asyncio.sleep(0)


def test_a_watch_is_told_all_once_then_what_changed_a_status_at_once_and_nothing_twice(monkeypatch):
    monkeypatch.setattr(watches, "STATE_INTERVAL", 3600.0)

    async def main():
        models = Models({"a": "ready", "b": "unloaded"})
        watched = Service(NeuronConfig(), "1", models, Preparation("INFO"), RecentLog(sys.stderr))
        first, second = Watcher(), Watcher()
        watched.handle(first, Watch(id=1))
        assert first.told() == [(True, {"a": "ready", "b": "unloaded"}, [])]
        models.status = {"a": "draining", "c": "unloaded"}
        watched.changed(True)
        watched.changed(True)
        await turn()
        assert first.told() == [(False, {"a": "draining", "c": "unloaded"}, ["b"])]
        watched.changed(True)
        await turn()
        assert first.told() == []  # nothing is another
        models.status["a"] = "unloaded"
        watched.changed()
        await turn()
        assert first.told() == []  # that can wait
        watched.handle(second, Watch(id=2))
        assert second.told() == [(True, {"a": "unloaded", "c": "unloaded"}, [])]
        assert first.told() == [(False, {"a": "unloaded"}, [])]
        second.told()
        models.finder.catalogue_version = "2"
        watched.changed(True)
        await turn()
        assert [each.catalogue for each in first.sent] == ["2"]
        assert first.told() == [(False, {}, [])]
        watched.handle(second, Hello(id=3, client="c", eviction=Eviction(strategy="lru", modified=5.0)))
        watched.changed(True)
        await turn()
        assert [each.eviction.strategy for each in first.sent] == ["lru"]
        assert first.told() == [(False, {}, [])]
        await watched.close(0.0)

    asyncio.run(main())


def test_a_watch_that_came_before_the_search_was_over_is_told_what_is_known_and_all_when_it_is(monkeypatch):
    monkeypatch.setattr(watches, "SEARCH_INTERVAL", 0.0)

    async def main():
        models = Models({"a": "unloaded"}, searched=False)
        watched = Service(NeuronConfig(), "1", models, Preparation("INFO"), RecentLog(sys.stderr))
        peer = Watcher()
        watched.handle(peer, Watch(id=1))
        assert [state.searching for state in peer.sent] == [True]
        assert peer.told() == [(True, {"a": "unloaded"}, [])]
        models.status["b"] = "unloaded"
        watched.changed()
        await turn()
        assert [state.searching for state in peer.sent] == [True]
        assert peer.told() == [(False, {"b": "unloaded"}, [])]  # no model is told twice
        models.searched = True
        watched.changed(True)
        await turn()
        assert [state.searching for state in peer.sent] == [False]
        assert peer.told() == [(True, {"a": "unloaded", "b": "unloaded"}, [])]
        await watched.close(0.0)

    asyncio.run(main())
