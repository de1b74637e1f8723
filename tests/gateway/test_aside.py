"""What is dear to read another process answers as this one would, and it is there while it is needed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http import aside, aside_process
from gateway.http.aside import LARGE, MOST_COMMAS, MOST_ENDS, MOST_QUOTES, is_dear
from gateway.http.aside_wire import Sent, framed
from tests.gateway.conftest import GatewayProcess, NeuronThread, client_of, eventually

CHAT = "/v1/chat/completions"
DEAR = [""] * (MOST_QUOTES // 2 + 1)  # for a field that nobody reads


@pytest.mark.parametrize(
    ("value", "dear"),
    [
        (DEAR, True),
        (DEAR[4:], False),
        ("x" * LARGE, True),
        ('say "hello", ' * (LARGE // 20), False),  # a text
        ([[]] * MOST_ENDS, True),
        ([{}] * MOST_ENDS, True),
        ([1] * (MOST_COMMAS + 2), True),
        ([1] * MOST_COMMAS, False),
    ],
    ids=range(8),
)
def test_what_takes_long_to_read_is_dear(value: Any, dear: bool) -> None:
    assert (
        is_dear(json.dumps({"a": value}).encode()) == is_dear(bytearray(json.dumps([value]), "utf-8")) == dear
    )


@pytest.fixture(scope="module")
def process(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), neuron.endpoint)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def beside(process: GatewayProcess) -> list[int]:
    """The processes that the one which serves has started."""
    (pid,) = process.workers()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two"}], "nobody": DEAR} | fields


def test_the_other_process_answers_as_this_one_does(process: GatewayProcess, neuron: NeuronThread) -> None:
    page = {"origin": "http://localhost", "x-request-id": "mine"}
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, chat("echo")),
        (CHAT, chat("echo", stream=True)),
        (CHAT, chat("echo", temperature=9)),
        (CHAT, chat("nothing")),
        ("/v1/messages", chat("echo", max_tokens=5)),
        ("/v1/messages", chat("echo")),
        ("/v1/responses", {"model": "echo", "input": "one two", "nobody": DEAR}),
        ("/v1/embeddings", {"model": "echo", "input": [], "nobody": DEAR}),
    ]
    with client_of(process, neuron) as http:

        def answers(**changes: Any) -> list[tuple[int, dict[str, str], list[str]]]:
            got = [http.post(path, json=fields | changes, headers=page) for path, fields in asked]
            kinds = [line.split(":")[0] for line in got[1].text.splitlines()]
            heads = [{name: value for name, value in each.headers.items() if name != "date"} for each in got]
            for head in heads:
                head["content-length"] = "?" if "content-length" in head else "none"
            return [(each.status_code, head, kinds) for each, head in zip(got, heads, strict=True)]

        here = answers(nobody=[])
        assert beside(process) == []
        there = answers()
        assert len(beside(process)) == 1
        assert here == there
        assert [status for status, _, _ in there] == [200, 200, 400, 404, 200, 400, 200, 400]
        assert http.post(CHAT, json=chat("echo")).json()["choices"][0]["message"]["content"] == "one two"


def test_who_leaves_ends_its_request_there(process: GatewayProcess, neuron: NeuronThread) -> None:
    with (
        client_of(process, neuron) as http,
        http.stream("POST", CHAT, json=chat("stuck", stream=True)) as answer,
    ):
        assert answer.status_code == 200
        eventually(lambda: neuron.working("stuck"), "the neuron has it")
    eventually(lambda: not neuron.working("stuck"), "the neuron is told that nobody waits for it")


def test_where_it_dies_what_it_did_breaks_and_another_one_takes_the_next(
    process: GatewayProcess, neuron: NeuronThread
) -> None:
    with client_of(process, neuron) as http:
        with http.stream("POST", CHAT, json=chat("stuck", stream=True)) as answer:
            eventually(lambda: neuron.working("stuck"), "the neuron has it")
            (pid,) = beside(process)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        assert http.post(CHAT, json=chat("echo")).status_code == 200
        (other,) = beside(process)
        assert other != pid
        assert http.get("/ready").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_beside_it(
    neuron: NeuronThread, tmp_path: Path, number: signal.Signals
) -> None:
    process = GatewayProcess(tmp_path, neuron.endpoint).wait_ready()
    try:
        with client_of(process, neuron) as http, http.stream("POST", CHAT, json=chat("stuck", stream=True)):
            (pid,), (serving,) = beside(process), process.workers()
            in_flight = 'cortex_requests_in_flight{model="stuck"}'
            eventually(lambda: process.metrics().get(in_flight) == 1, "it is counted")
            os.kill(serving if number == signal.SIGKILL else process.process.pid, number)
            if number == signal.SIGKILL:
                process.wait_ready()
                eventually(lambda: not process.metrics().get(in_flight), "nothing of it is in flight")
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "it is gone")
    finally:
        process.stop()
    assert "Traceback" not in process.log.read_text()


def test_one_that_stands_still_is_killed_and_one_that_takes_long_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aside_process, "BEAT", 0.02)
    monkeypatch.setattr(aside, "SILENCE", 5.0)

    async def scenario(process: subprocess.Popen[bytes]) -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=here)
        _, theirs = await asyncio.open_unix_connection(sock=there)
        answer = aside._Answer(reader, writer, process)
        beat = asyncio.create_task(aside_process._beat(theirs))
        asyncio.get_running_loop().call_later(0.3, theirs.write, framed(Sent(body=b"late")))
        assert await anext(answer) == b"late"
        assert process.poll() is None
        beat.cancel()
        monkeypatch.setattr(aside, "SILENCE", 0.1)
        with pytest.raises(TimeoutError):
            await anext(answer)
        writer.close()
        theirs.close()

    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            asyncio.run(scenario(process))
            assert process.wait(60) == -signal.SIGKILL
        finally:
            process.kill()
