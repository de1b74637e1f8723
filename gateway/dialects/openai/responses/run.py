"""One response on its way: a neuron is asked, and what comes is written."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from time import monotonic

from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS, comment
from gateway.dialects.fields import renamed
from gateway.dialects.large import Body, written
from gateway.dialects.openai.responses import response
from gateway.dialects.openai.responses.output import Status
from gateway.dialects.openai.responses.request import NAMES, Creation
from gateway.dialects.openai.responses.truncate import truncate
from gateway.dialects.parts import parts
from gateway.dialects.rendering import rendered
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.refusals import BUG
from gateway.store import responses
from gateway.store.response_store import ResponseStore
from ipc.errors import Code, CortexError
from ipc.messages.answers import TokenLogprob, ToolCallDelta
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta, Finished, Progress, Reply, Started

logger = logging.getLogger("gateway.dialects.openai.responses.run")


class Run:
    """Takes one request to its end: by `whole`, or by `events`, which `start` may go before.

    Args:
        store: where the response is kept before its end is told; None: whoever reads the events keeps it.

    Attributes:
        is_over: whether the last event has been written.
    """

    def __init__(
        self, fleet: Fleet, exchange: Exchange, creation: Creation, store: ResponseStore | None = None
    ) -> None:
        self._fleet = fleet
        self._exchange, self._creation = exchange, creation
        self._store = store if creation.response["store"] else None
        self._output, self._events = creation.output, creation.output.events
        self._sent = self._begun = False
        self._early: list[Reply] = []  # that came before the stream began
        self._failure: CortexError | None = None
        self.is_over = False

    async def whole(self) -> Body:
        """The body of an unstreamed answer. CortexError when it failed."""
        await self._send()
        finished = await self._exchange.whole()
        await rendered(partial(self._take, finished), [finished], self._creation.account)
        self._finish(finished)
        await self._keep()
        self._exchange.receipt.on_ready()
        return written(self._creation.response)

    def _take(self, finished: Finished) -> None:
        """Make items of a whole answer."""
        for part in parts(finished.choices[0]):
            self._output.take(_as_delta(*part))
        self._output.close(_status(finished))

    async def start(self) -> None:
        """Hand a streamed request over, and wait until the neuron takes it, or has had its time to refuse it.

        A prompt that is too long is not refused here: clients look for that in the stream.

        Raises:
            CortexError: it failed, and nothing was written yet.
        """
        self._sent = True
        try:
            await self._send()
            self._early = await self._exchange.verdict()
        except CortexError as error:
            if error.code != Code.CONTEXT_LENGTH_EXCEEDED:
                raise
            self._exchange.receipt.status = 200
            self._failure = error

    async def events(self) -> AsyncIterator[Body]:
        """The stream, never silent for longer than a second; what came together is written together. What may
        be long comes in pieces, and is whole events together."""
        if not self._begun:
            yield self.begin()
        told = monotonic()
        try:
            if self._failure is not None:
                raise self._failure
            if not self._sent:
                await self._send()
            replies, self._early = self._early, []
            while self._exchange.finished is None or replies:
                data = await self._said(replies)
                if not data and monotonic() - told >= KEEP_ALIVE_SECONDS:
                    data = comment(None)
                if data:
                    yield data
                    told = monotonic()
                left = max(told + KEEP_ALIVE_SECONDS - monotonic(), 0.0)
                replies = [] if self._exchange.finished is not None else await self._exchange.take(left)
            finished = self._exchange.finished
            # Whoever records this must not take it for the end.
            yield self._output.close(_status(finished))
            self._finish(finished)
            await self._keep()
        except Exception as error:
            if not isinstance(error, CortexError):
                logger.exception("request failed request_id=%s", self._exchange.request_id)
                error = CortexError(Code.INTERNAL, BUG)
            response.failed(self._creation.response, self._output.items, renamed(error, NAMES))
            with suppress(CortexError):
                await self._keep()
        self._exchange.receipt.on_ready()
        self.is_over = True
        yield self._now()

    async def _send(self) -> None:
        generate = self._creation.generate
        if self._creation.fields.truncation == "auto":
            await truncate(self._fleet, generate, self._creation.account, self._exchange.request_id)
        await self._exchange.send(generate)

    def begin(self) -> bytes:
        """The first events, which `events` begins with, unless they have been asked for."""
        self._begun = True
        status = self._creation.response["status"]
        created = self._events.write("response.created", response=self._creation.response)
        return created + self._events.write(f"response.{status}", response=self._creation.response)

    async def _said(self, replies: list[Reply]) -> bytes:
        """What is to be written of replies."""
        if self._creation.generate.sampling.tells:
            return await rendered(partial(self._say_all, replies), replies, self._creation.account)
        return self._say_all(replies)

    def _say_all(self, replies: list[Reply]) -> bytes:
        return b"".join(map(self._say, replies))

    def _say(self, reply: Reply) -> bytes:
        kind = type(reply)
        if kind is Delta:
            return self._output.take(reply)
        if kind is Progress:
            return comment(reply)
        if kind is Started and self._creation.response["status"] == "queued":
            self._creation.response["status"] = "in_progress"
            return b"".join(self._now())
        return b""

    def _now(self) -> list[bytes]:
        """The event that is called as the state is, in pieces."""
        response = self._creation.response
        return self._events.pieces(f"response.{response['status']}", response=response)

    def _finish(self, finished: Finished) -> None:
        """Note the end."""
        response.ended(self._creation.response, _status(finished), self._output.items, finished.usage)

    async def _keep(self) -> None:
        """Keep the response before the client hears of its end, so that it finds it then."""
        if self._store is not None:
            creation = self._creation
            await self._store.write(
                responses.put,
                self._store.limits,
                creation.account,
                creation.stored(),
                conversation=creation.fields.conversation_id,
            )


def _status(finished: Finished) -> Status:
    return "incomplete" if finished.choices[0].reason == "length" else "completed"


def _as_delta(thought: str, text: str, call: ToolCall | None, logprobs: list[TokenLogprob]) -> Delta:
    """A part of a whole answer as a piece of a streamed one."""
    calls = []
    if call is not None:
        calls = [ToolCallDelta(index=0, call_id=call.id, name=call.name, arguments=call.arguments)]
    return Delta(id=0, tokens=0, reasoning=thought, text=text, tool_calls=calls, logprobs=logprobs)
