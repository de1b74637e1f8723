"""Lines of the log, for those who are elsewhere: the last ones, those about a request, and what is new."""

from __future__ import annotations

import asyncio
import io

from neuron.recent_log import LINES, LONGEST, RecentLog
from tests.neuron.harness import until


def written(*lines: str) -> tuple[RecentLog, io.StringIO]:
    stream = io.StringIO()
    recent = RecentLog(stream)
    for line in lines:
        recent.write(f"{line}\n")
    return recent, stream


def test_lines_are_passed_on_and_the_last_are_kept() -> None:
    recent, stream = written(*map(str, range(LINES + 7)))
    assert stream.getvalue().count("\n") == LINES + 7
    assert recent.last(2) == [str(LINES + 5), str(LINES + 6)]
    assert recent.last(0) == []
    assert len(recent.last(2 * LINES)) == LINES


def test_a_line_of_any_length_is_kept_short() -> None:
    recent, stream = written("x" * 3 * LONGEST)
    assert len(stream.getvalue()) == 3 * LONGEST + 1
    assert recent.last(1) == ["x" * LONGEST]


def test_lines_about_a_request_are_those_with_its_whole_id() -> None:
    recent, _ = written(
        "a trace=r-1 b", "a trace=r-12 b", 'a {"trace": "r-1"}', "a trace=x-r-1 b", "a trace=r.1 b"
    )
    assert recent.last(9, "r-1") == ["a trace=r-1 b", 'a {"trace": "r-1"}']


def test_followers_are_told_what_is_new_until_they_leave() -> None:
    async def scenario() -> None:
        recent, _ = written("before trace=r")
        every: list[str] = []
        about: list[str] = []
        recent.follow("every", "", every.extend)
        recent.follow("about", "r", about.extend)
        recent.write("first trace=r\nsecond\n")
        await until(lambda: len(every) == 2)
        assert every == ["first trace=r", "second"]
        assert about == ["first trace=r"]
        assert recent.leave("about")
        assert not recent.leave("about")
        recent.write("third trace=r\n")
        await until(lambda: len(every) == 3)
        assert about == ["first trace=r"]
        recent.leave("every")
        assert recent.followers == []

    asyncio.run(scenario())
