"""One response on its way: a neuron is asked, and what comes is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

from gateway.dialects.comments import comment
from gateway.dialects.openai.common import encode
from gateway.dialects.openai.responses import response as object_of
from gateway.dialects.openai.responses.output import Output
from gateway.fleet.exchange import Exchange
from ipc.errors import Code, CortexError
from ipc.messages import Choice, Delta, Finished, Generate, Progress, Reply, ToolCallDelta

KEEP_ALIVE_SECONDS = 1.0
VERDICT_SECONDS = 0.5  # an answer that fails so soon gets an HTTP status


class Run:
    """Takes one request to its end; either `whole`, or `start` and then `events`."""

    def __init__(
        self, exchange: Exchange, generate: Generate, response: dict[str, Any], output: Output
    ) -> None:
        self._exchange, self._generate = exchange, generate
        self._response, self._output = response, output
        self._write = output.events.write
        self._early: list[Reply] = []  # that came before the stream began
        self._failure: CortexError | None = None

    async def whole(self) -> bytes:
        """The body of an unstreamed answer. CortexError when it failed."""
        await self._exchange.send(self._generate)
        finished = await self._exchange.whole()
        self._output.take(_as_delta(finished.choices[0]))
        self._finish(finished)
        self._exchange.ready()
        return encode(self._response)

    async def start(self) -> None:
        """Hand a streamed request over, and wait until the neuron takes it, or has had its time to refuse it.

        A prompt that is too long is not refused here: clients look for that in the stream.

        Raises:
            CortexError: it failed, and nothing was written yet.
        """
        try:
            await self._exchange.send(self._generate)
            deadline = monotonic() + VERDICT_SECONDS
            while self._exchange.started is None and (left := deadline - monotonic()) > 0:
                self._early += await self._exchange.take(left)
            self._exchange.check()
        except CortexError as error:
            if error.code != Code.CONTEXT_LENGTH_EXCEEDED:
                raise
            self._exchange.status = 200
            self._failure = error

    async def events(self) -> AsyncIterator[bytes]:
        """The stream, never silent for longer than a second; what came together is written together."""
        yield self._write("response.created", response=self._response) + self._write(
            "response.in_progress", response=self._response
        )
        written = monotonic()
        finished: Finished | None = None
        replies, self._early = self._early, []
        try:
            if self._failure is not None:
                raise self._failure
            while True:
                data = b""
                for reply in replies:
                    if type(reply) is Delta:
                        data += self._output.take(reply)
                    elif type(reply) is Progress:
                        data += comment(reply)
                    elif type(reply) is Finished:
                        finished = reply
                if finished is not None:
                    data += self._finish(finished)
                    self._exchange.ready()
                    yield data + self._end()
                    return
                if not data and monotonic() - written >= KEEP_ALIVE_SECONDS:
                    data = comment(None)
                if data:
                    yield data
                    written = monotonic()
                left = written + KEEP_ALIVE_SECONDS - monotonic()
                replies = await self._exchange.take(max(left, 0.0))
        except CortexError as error:
            object_of.failed(self._response, self._output.items, error)
            self._exchange.ready()
            yield self._end()

    def _finish(self, finished: Finished) -> bytes:
        """Note the end, and close what is open."""
        status = "incomplete" if finished.choices[0].reason == "length" else "completed"
        said = self._output.close(status)
        object_of.ended(self._response, status, self._output.items, finished.usage)
        return said

    def _end(self) -> bytes:
        return self._write(f"response.{self._response['status']}", response=self._response)


def _as_delta(choice: Choice) -> Delta:
    """A whole answer as a piece."""
    calls = [
        ToolCallDelta(index=i, call_id=call.id, name=call.name, arguments=call.arguments)
        for i, call in enumerate(choice.tool_calls)
    ]
    return Delta(
        id=0,
        tokens=0,
        reasoning=choice.reasoning,
        text=choice.text,
        tool_calls=calls,
        logprobs=choice.logprobs,
    )
