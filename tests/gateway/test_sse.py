"""Streams: what came is written, in order and at once, also when the request then failed."""

from __future__ import annotations

import asyncio

import pytest

from gateway.dialects import Renderer
from gateway.dialects.event_streams import comment
from gateway.http.sse import EventStream
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.replies import Delta, Finished, Progress, Started
from tests.doubles import stands_for
from tests.gateway.scripted_exchange import Script

STARTED = Started(id=1, prompt_tokens=1)
FINISHED = Finished(id=1, choices=[Choice(reason="stop")], usage=Usage(), timings=Timings())


@stands_for(Renderer)
class Words:
    """A dialect of plain words."""

    def whole(self, started: Started, finished: Finished) -> bytes:
        return finished.choices[0].text.encode()

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

    def in_client_words(self, error: CortexError) -> CortexError:
        return error

    def failed(self, error: CortexError) -> bytes:
        return error.code.encode()


def delta(text: str) -> Delta:
    return Delta(id=1, tokens=1, text=text)


def written(script: Script) -> list[bytes]:
    async def read() -> list[bytes]:
        early = await script.verdict()
        return [data async for data in EventStream(script, Words(), early)]

    return asyncio.run(read())


def is_ready(script: Script) -> bool:
    """Whether a client that leaves now has had all."""
    script.receipt.on_left()
    return not script.receipt.left


def test_a_fault_of_ours_ends_the_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert written(Script([STARTED, delta("a")], [delta("bug")], [FINISHED])) == [b"<a", b"internal"]
    assert "request failed request_id=r-1" in caplog.text


def test_a_fault_of_ours_on_the_way_ends_the_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert written(Script([STARTED], [delta("a")], error=KeyError("bug"))) == [b"<", b"a", b"internal"]
    assert "request failed request_id=r-1" in caplog.text


def test_what_came_together_is_one_write() -> None:
    script = Script([STARTED, delta("a"), delta("b")], [delta("c")], [delta("d"), FINISHED])
    assert written(script) == [b"<ab", b"c", b"d>"]
    assert is_ready(script)


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
    assert is_ready(script)


def test_failure_before_the_first_byte_is_raised() -> None:
    with pytest.raises(CortexError, match="too long"):
        written(Script(error=CortexError(Code.CONTEXT_LENGTH_EXCEEDED, "too long")))
    with pytest.raises(CortexError, match="gone"):
        written(Script([STARTED, delta("a")], error=CortexError(Code.WORKER_DIED, "gone")))
