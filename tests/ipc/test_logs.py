"""A line of the log as JSON has what the line of text has, by name."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import select
import subprocess
import sys
from typing import Any

import pytest

from gateway.access import api_key
from ipc.logs import Event, Gathered, JSONLines, Lines, TextLines, hide_keys


def line(message: object, *args: Any, **more: Any) -> dict[str, Any]:
    record = logging.LogRecord("neuron.x", logging.INFO, "f.py", 1, message, args, None)
    record.__dict__.update(more)
    text = JSONLines(rank=2).format(record)
    assert "\n" not in text
    return json.loads(text)


def test_named_values_are_members_with_their_types() -> None:
    said = line("model loaded model=%s seconds=%.2f bytes=%d why=%s", "a/b", 1.234, 5, None)
    assert said["event"] == "model loaded"
    assert (said["model"], said["seconds"], said["bytes"], said["why"]) == ("a/b", 1.234, 5, None)
    assert (said["level"], said["logger"], said["rank"]) == ("INFO", "neuron.x", 2)
    assert said["time"].endswith("Z")


@pytest.mark.parametrize(
    ("message", "args", "event"),
    [
        ("%s; the keys that are known hold", ("no file",), "no file; the keys that are known hold"),
        ("twice a=%s a=%s", (1, 2), "twice a=1 a=2"),
        ("100%", (), "100%"),
        ("plain", (), "plain"),
        ("model is %s model=%s", ("pinned", "m"), "model is pinned"),
        ("made a=%s, and more", (1,), "made a=1, and more"),
        ("of a mapping %(a)s", ({"a": 1},), "of a mapping 1"),
        (ValueError("an object"), (), "an object"),
    ],
)
def test_what_has_no_names_is_the_event(message: Any, args: Any, event: str) -> None:
    assert line(message, *args)["event"] == event


def test_values_that_are_no_json_are_text() -> None:
    assert line("x value=%s", object)["value"] == "<class 'object'>"
    assert line("x value=%s", 'quo"te\nline')["value"] == 'quo"te\nline'


def test_trace_and_exception_stand_in_it() -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        said = line("failed", trace=" trace=r-1", exc_info=sys.exc_info())
    assert said["trace"] == "r-1"
    assert "KeyError: 'lost'" in said["exception"]


def test_children_write_as_their_parent_does() -> None:
    write = "from ipc.logs import log_to_stderr as to; "
    child = f"{write} import logging; to('INFO', '%(message)s'); logging.info('x n=%d', 1)"
    run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = f"{write} to('INFO', '', STYLE); {run}"
    for style, wanted in (("json", 1), ("text", None)):
        code = parent.replace("STYLE", repr(style))
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=150
        ).stderr
        assert (json.loads(said)["n"] if wanted else said) == (wanted or "x n=1\n")


def test_a_line_of_text_is_as_loggings_own_in_whatever_order_their_times_come() -> None:
    ours, theirs = (kind("%(asctime)s %(levelname)s %(message)s") for kind in (TextLines, logging.Formatter))
    record = logging.LogRecord("x", logging.INFO, "f.py", 1, "read file=%s", ("a",), None)
    for record.created in (1_790_000_000.0, 1_790_000_000.999, 1_790_000_001.5, 1_789_999_999.25):
        record.msecs = record.created % 1 * 1000
        assert ours.format(record) == theirs.format(record)


def test_an_event_has_the_names_that_formats_of_others_have() -> None:
    record = Event("x", logging.INFO, "f.py", 1, "read %(file)s", ({"file": "a"},), None)
    theirs = logging.Formatter("%(levelname)s %(filename)s:%(lineno)d %(threadName)s %(message)s")
    assert theirs.format(record) == "INFO :0 None read a"
    assert vars(logging.LogRecord("x", logging.INFO, "f.py", 1, "", (), None)).keys() <= vars(record).keys()


def event(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "f.py", 1, message, args, None)


def test_an_api_key_is_in_no_line_wherever_a_client_sends_it() -> None:
    key, stream = api_key.make().text, io.StringIO()
    handler = Lines(stream)
    for formatter in (TextLines("%(message)s"), JSONLines()):
        handler.setFormatter(formatter)
        handler.handle(event("refused path=%r trace=%s", f"/v1/{key}/x", key))
    said = stream.getvalue()
    assert key.removeprefix(api_key.PREFIX) not in said
    assert said.startswith("refused path='/v1/sk-cortex-***/x' trace=sk-cortex-***\n{")


def test_an_api_key_is_in_no_line_of_others_that_is_filtered() -> None:
    key, stream = api_key.make().text, io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(hide_keys)
    for message, args in (("%s %s", ("GET", f"/v1/{key}/%d")), ("100 % of it", ()), ("%d left", (3,))):
        handler.handle(event(message, *args))
    assert stream.getvalue() == "GET /v1/sk-cortex-***/%d\n100 % of it\n3 left\n"


@pytest.mark.parametrize("filling", ["x" * 1600, "é" * 160, "\U0001f600" * 160, "\udc80" * 160])
def test_lines_that_come_together_are_whole_in_each_write_and_in_order(filling: str) -> None:
    writes: list[str] = []
    stream = io.StringIO()
    stream.write = writes.append
    handler = Lines(stream)
    handler.together([event("%d " + filling, number) for number in range(9)])
    handler.handle(event("last"))
    assert [text.count("\n") for text in writes] == [2, 2, 2, 2, 1, 1]
    assert all(text.endswith("\n") for text in writes)
    assert all(len(text.encode("ascii", "backslashreplace")) <= select.PIPE_BUF for text in writes)
    assert [line[:2] for line in "".join(writes).splitlines()] == [*(f"{n} " for n in range(9)), "la"]


def test_what_came_before_a_filter_failed_is_written() -> None:
    stream = io.StringIO()
    handler = Lines(stream)
    handler.addFilter(lambda record: record.getMessage() != "three" or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        handler.together([event(each) for each in ("one", "two", "three", "four")])
    assert stream.getvalue() == "one\ntwo\n"


def test_a_log_that_nobody_reads_any_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, told = io.StringIO(), []
    stream.write = lambda text: (_ for _ in ()).throw(BrokenPipeError)
    handler = Lines(stream)
    monkeypatch.setattr(handler, "handleError", lambda record: told.append(record.getMessage()))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)

    async def scenario() -> None:
        lines = Gathered(root)
        lines.info("one")
        lines.info("two")
        lines.write()
        root.info("three")

    asyncio.run(scenario())
    assert told == ["two", "three"]
