"""An exchange with a neuron that says what was written down for it."""

from __future__ import annotations

from gateway.config import GatewayConfig
from gateway.fleet.exchange import Exchange
from gateway.fleet.receipt import Asked
from gateway.fleet.view import Fleet
from ipc.errors import CortexError
from ipc.messages.replies import Finished, Reply, Started
from tests.doubles import stands_for


@stands_for(Exchange)
class Script(Exchange):
    """Gives batches of replies, then its error. One that is none of ours is raised where it comes."""

    def __init__(self, *batches: list[Reply], error: Exception | None = None) -> None:
        super().__init__(Fleet(GatewayConfig()), "r-1")
        self._batches, self._error = list(batches), error

    async def send(self, request: Asked) -> None:
        self._request = self.receipt.request = request

    async def take(self, within: float) -> list[Reply]:
        self.check()
        batch = self._batches.pop(0)
        for reply in batch:
            if isinstance(reply, Started):
                self.receipt.started = reply
            elif isinstance(reply, Finished):
                self.receipt.finished = reply
        return batch

    async def _wait(self) -> None:
        await self.take(0.0)

    def check(self) -> None:
        if not self._batches and self._error is not None:
            if isinstance(self._error, CortexError):
                self.receipt.fail(self._error)
            raise self._error
