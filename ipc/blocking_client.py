"""The client's side of the protocol for scripts and tests: a reply is waited for where it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Self

from ipc.call import TERMINAL_TYPES
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.replies import Reply
from ipc.messages.requests import AnyRequest


class BlockingClient:
    """`NeuronClient` for programs without an event loop; a context manager.

    One thread, one request at a time.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        secret: str | None = None,
        server_public: str | None = None,
        silence: float = 5.0,
    ) -> None:
        self._client = NeuronClient(endpoint, secret=secret, server_public=server_public, silence=silence)
        self._runner = asyncio.Runner()
        self._runner.run(self._start())

    async def _start(self) -> None:
        self._client.start()

    def ask(self, request: AnyRequest, timeout: float) -> Reply:
        """The terminal reply; CortexError as `NeuronClient.ask`."""
        return self._runner.run(self._client.ask(request, timeout))

    def stream(self, request: AnyRequest, timeout: float) -> Iterator[Reply]:
        """All replies, the terminal one last. Leaving the iteration early cancels the request.

        Raises:
            CortexError: the next reply did not come within `timeout` seconds (NEURON_LOST).
        """
        call = self._client.open(request, patient=True)
        replies = aiter(call)
        try:
            while True:
                reply = self._runner.run(self._next(replies, timeout))
                yield reply
                if type(reply) in TERMINAL_TYPES:
                    return
        finally:
            call.cancel()

    async def _next(self, replies: AsyncGenerator[Reply, None], within: float) -> Reply:
        try:
            return await asyncio.wait_for(anext(replies), within)
        except TimeoutError:
            raise CortexError(Code.NEURON_LOST, self._client.no_answer(within)) from None

    def close(self) -> None:
        self._runner.run(self._stop())
        self._runner.close()

    async def _stop(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
