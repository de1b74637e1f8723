"""Streams: what came is written, in order and at once, also when the request then failed."""

from __future__ import annotations

import asyncio

import pytest

from gateway.dialects.event_streams import comment
from gateway.fleet.exchange import Exchange
from gateway.http.sse import EventStream
from ipc.errors import Code, CortexError
from ipc.messages import Choice, Delta, Finished, Progress, Reply, Started, Timings, Usage

STARTED = Started(id=1, prompt_tokens=1)
FINISHED = Finished(id=1, choices=[Choice(reason="stop")], usage=Usage(), timings=Timings())


class Script:
    """An exchange that gives batches of replies, then its error."""

    def __init__(self, *batches: list[Reply], error: Exception | None = None) -> None:
        self.batches, self.error = list(batches), error
        self.request_id = "r-1"
        self.started: Started | None = None
        self.is_ready = False

    def check(self) -> None:
        if not self.batches and self.error is not None:
            raise self.error

    async def take(self, within: float) -> list[Reply]:
        self.check()
        batch = self.batches.pop(0)
        self.started = self.started or next((reply for reply in batch if isinstance(reply, Started)), None)
        return batch

    @property
    def account(self) -> Script:
        return self

    def on_ready(self) -> None:
        self.is_ready = True


class Words:
    """A dialect of plain words."""

    def started(self, started: Started) -> bytes:
        return b"<"

    def delta(self, delta: Delta) -> bytes:
        if delta.text == "bug":
            raise KeyError(delta.text)
        return delta.text.encode()

    def waiting(self, progress: Progress | None) -> bytes:
        return b"." if progress is None else progress.stage.encode()

    def finished(self, finished: Finished) -> bytes:
        return b">"

    def failed(self, error: CortexError) -> bytes:
        return error.code.encode()


def delta(text: str) -> Delta:
    return Delta(id=1, tokens=1, text=text)


def written(script: Script) -> list[bytes]:
    async def read() -> list[bytes]:
        early = await Exchange.verdict(script)
        return [data async for data in EventStream(script, Words(), early)]

    return asyncio.run(read())


def test_a_fault_of_ours_ends_the_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert written(Script([STARTED, delta("a")], [delta("bug")], [FINISHED])) == [b"<a", b"internal"]
    assert "request failed request_id=r-1" in caplog.text


def test_a_fault_of_ours_on_the_way_ends_the_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert written(Script([STARTED], [delta("a")], error=KeyError("bug"))) == [b"<", b"a", b"internal"]
    assert "request failed request_id=r-1" in caplog.text


def test_what_came_together_is_one_write() -> None:
    script = Script([STARTED, delta("a"), delta("b")], [delta("c")], [delta("d"), FINISHED])
    assert written(script) == [b"<ab", b"c", b"d>"]
    assert script.is_ready


def test_silence_is_filled_as_the_dialect_likes() -> None:
    progress = Progress(id=1, stage="loading")
    script = Script([STARTED], [], [delta("")], [progress], [delta("a")], [FINISHED])
    assert written(script) == [b"<", b".", b"loading", b"a", b">"]


def test_a_comment_says_what_is_waited_for_in_one_line() -> None:
    progress = Progress(id=1, stage="loading", message="of\nweights", fraction=0.5, seconds_left=2.6)
    assert comment(progress) == b": loading 50% of weights, 3 s left\n\n"
    assert comment(Progress(id=1, stage="queued")) == b": queued\n\n"
    assert comment(None) == b": keep-alive\n\n"


def test_output_before_a_failure_is_not_lost() -> None:
    script = Script([STARTED], [delta("a"), delta("b")], error=CortexError(Code.WORKER_DIED, "gone"))
    assert written(script) == [b"<", b"ab", b"worker_died"]
    assert script.is_ready


def test_failure_before_the_first_byte_is_raised() -> None:
    with pytest.raises(CortexError, match="too long"):
        written(Script(error=CortexError(Code.CONTEXT_LENGTH_EXCEEDED, "too long")))
    with pytest.raises(CortexError, match="gone"):
        written(Script([STARTED, delta("a")], error=CortexError(Code.WORKER_DIED, "gone")))
