"""Every open request of a neuron, in one place. How far each is, its `phase` says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ipc.server import Peer
from neuron.requests.request import OpenRequest


class OpenRequests:
    """One dict, by who asked and the number that they gave it, in the order of arrival."""

    def __init__(self) -> None:
        self._settled: asyncio.Future[None] | None = None  # while somebody waits for that
        self._requests: dict[tuple[Peer, int], OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[OpenRequest]:
        """All of them, as they are now: they may end meanwhile."""
        return iter(list(self._requests.values()))

    def add(self, peer: Peer, request: OpenRequest) -> None:
        self._requests[peer, request.request.id] = request

    def get(self, peer: Peer, number: int) -> OpenRequest | None:
        return self._requests.get((peer, number))

    def of(self, peer: Peer) -> list[OpenRequest]:
        """Those that `peer` asked for."""
        return [request for (owner, _), request in self._requests.items() if owner is peer]

    def remove(self, peer: Peer, request: OpenRequest) -> None:
        """It ended."""
        del self._requests[peer, request.request.id]
        if self._settled is not None and not self._requests and not self._settled.done():
            self._settled.set_result(None)

    async def settle(self) -> None:
        """Wait until nothing is open."""
        if self._requests:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
