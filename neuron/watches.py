"""Clients that are told how this neuron is: all of it once, and from then on what is not as it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from ipc.errors import CortexError
from ipc.messages.replies import Failed, State
from ipc.server import Peer
from neuron.models.manager import ModelManager

_TOLD = ("draining", "devices", "catalogue", "eviction")  # of a `State`, when they change
STATE_INTERVAL = 0.1  # seconds between two `State` of one watch, at least
SEARCH_INTERVAL = 0.5  # the same while it is searched for models, and each is one more


class Watches:
    """All that are open, of all peers.

    Args:
        models: what prefixes their workers hold, and whether they are searched for.
        state: makes a whole `State` of now, without prefixes.
    """

    def __init__(self, models: ModelManager, state: Callable[[], State]) -> None:
        self._models = models
        self._state = state
        self._open: dict[tuple[Peer, int], bool] = {}  # by peer and request; whether it has had a whole state
        self._told: State | None = None  # to all of them, last
        self._pushing: asyncio.TimerHandle | None = None
        self._pushing_now = False
        self._pushed = 0.0  # monotonic

    def add(self, peer: Peer, request_id: int) -> None:
        """Somebody watches, and is told at once what there is."""
        self._open[peer, request_id] = False
        self._push()

    def drop(self, peer: Peer, request_id: int) -> None:
        """It watches no more, if it did."""
        self._open.pop((peer, request_id), None)

    def leave(self, peer: Peer) -> None:
        """That peer is gone."""
        self._open = {watch: had for watch, had in self._open.items() if watch[0] is not peer}

    def changed(self, now: bool = False) -> None:
        """Something that `State` tells is not what it was: tell it soon, and all together.

        Args:
            now: do not wait: a router must not send requests where their model has just left.
        """
        if not self._open or self._pushing_now:
            return
        if now or self._pushing is None:
            if self._pushing is not None:
                self._pushing.cancel()
            interval = STATE_INTERVAL if self._models.searched else SEARCH_INTERVAL
            wait = 0.0 if now else max(0.0, self._pushed + interval - time.monotonic())
            self._pushing = asyncio.get_running_loop().call_later(wait, self._push)
            self._pushing_now = now

    def end(self, error: CortexError) -> None:
        """Fail all of them with `error`, and tell nobody anything more."""
        for peer, request_id in self._open:
            peer.send(Failed.of(request_id, error))
        self._open.clear()
        if self._pushing is not None:
            self._pushing.cancel()

    def _push(self) -> None:
        if self._pushing is not None:
            self._pushing.cancel()
            self._pushing, self._pushing_now = None, False
        self._pushed = time.monotonic()
        state = self._state()
        prefixes = self._models.take_prefix_news()
        news = _news(self._told, state, prefixes) if self._told is not None else None
        if self._told is not None and self._told.searching and not state.searching:
            self._open = dict.fromkeys(self._open, False)  # what an earlier process had is not there any more
        self._told = state
        if not all(self._open.values()):
            state = replace(state, prefixes=self._models.prefixes())
        for (peer, request_id), had_whole in self._open.items():
            if (reply := news if had_whole else state) is not None:
                peer.send(replace(reply, id=request_id))
        self._open = dict.fromkeys(self._open, True)


def _news(before: State, now: State, prefixes: Mapping[str, dict[bytes, int]]) -> State | None:
    """What is not as it was; None: nothing."""
    known = {model.id: model for model in before.models}
    models = [model for model in now.models if known.pop(model.id, None) != model]
    same = all(getattr(before, name) == getattr(now, name) for name in _TOLD)
    if same and not models and not known and not prefixes:
        return None
    return replace(now, models=models, whole=False, gone=list(known), prefixes=prefixes)
