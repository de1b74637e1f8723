"""Every open request of a neuron, in one place. How far each is, its `phase` says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ipc.server import Peer
from neuron.requests.request import OpenRequest


class OpenRequests:
    """One dict, by who asked and the number that they gave it, in the order of arrival.

    Attributes:
        settled: set while nothing is open.
    """

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        self.settled.set()
        self._requests: dict[tuple[Peer, int], OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[OpenRequest]:
        """All of them, as they are now: they may end meanwhile."""
        return iter(list(self._requests.values()))

    def add(self, peer: Peer, request: OpenRequest) -> None:
        self._requests[peer, request.request.id] = request
        self.settled.clear()

    def get(self, peer: Peer, number: int) -> OpenRequest | None:
        return self._requests.get((peer, number))

    def of(self, peer: Peer) -> list[OpenRequest]:
        """Those that `peer` asked for."""
        return [request for (owner, _), request in self._requests.items() if owner is peer]

    def remove(self, peer: Peer, request: OpenRequest) -> None:
        """It ended."""
        del self._requests[peer, request.request.id]
        if not self._requests:
            self.settled.set()
