"""A request has one id: the client's own, in every answer, in every line about it, and at the neuron."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.refusals import one_line
from tests.gateway.conftest import GatewayProcess, NeuronThread, client_of, eventually

CHAT = {"messages": [{"role": "user", "content": "one two three four"}]}


class TwoNeurons:
    """A gateway with a neuron that refuses everything, and one that does not."""

    def __init__(self, folder: Path) -> None:
        self.refusing = NeuronThread(name="full", models=("echo",), refuses={"echo": "queue_full"})
        self.other = NeuronThread(name="other", models=("echo", "breaks/worker_died"))
        self.gateway = GatewayProcess(folder, self.refusing.endpoint, neurons={"other": self.other.endpoint})

    def lines(self, request_id: str) -> list[str]:
        """What the log has of that request, once it is over."""

        def over() -> list[str]:
            log = self.gateway.log.read_text().splitlines()
            said = [line for line in log if f"request_id={request_id} " in line]
            return said if any("request ended" in line for line in said) else []

        return eventually(over, f"the end of {request_id}")

    def close(self) -> None:
        self.gateway.stop()
        self.refusing.close()
        self.other.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNeurons]:
    two = TwoNeurons(tmp_path_factory.mktemp("two"))
    try:
        two.gateway.wait_ready()
        yield two
    finally:
        two.close()


def parts(line: str) -> set[str]:
    """What a line says: its first words, and its values by their names."""
    return set(re.split(r" (?=\w+=)(?!request_id)", line.partition("] ")[2]))


def ask(two: TwoNeurons, request_id: str, **fields: object) -> httpx.Response:
    with client_of(two.gateway, two.other) as client:
        headers = {"x-request-id": request_id}
        return client.post("/v1/chat/completions", json=CHAT | fields, headers=headers)


def test_a_request_that_moves_on_keeps_its_id(two: TwoNeurons) -> None:
    """Nothing tells the two neurons apart, so which one is asked first depends on the prompt."""
    for number in range(50):
        name = f"moved-{number}"
        answer = ask(two, name, model="echo", messages=[{"role": "user", "content": f"{number} " * 300}])
        assert answer.headers["x-request-id"] == answer.headers["request-id"] == name
        lines = two.lines(name)
        if len(lines) == 2:
            break
    placed, end = lines
    assert {f"request placed request_id={name}", "neuron=other", "refused=fake:queue_full"} <= parts(placed)
    assert {f"request ended request_id={name}", "neuron=other", "status=200"} <= parts(end)
    assert two.refusing.neuron.served[-1].trace == two.other.neuron.served[-1].trace == name


def test_a_stream_that_breaks_says_so_at_its_end(two: TwoNeurons) -> None:
    ask(two, "broken-1", model="breaks/worker_died", stream=True)
    *_, end = two.lines("broken-1")
    assert {"request ended request_id=broken-1", "status=503", "reason=worker_died: it breaks"} <= parts(end)


@pytest.mark.parametrize(
    ("request_id", "fields", "reason"),
    [
        ("wrong-1", {"model": "echo", "messages": 3}, "reason=bad_request: messages: "),
        ("wrong-2", {"model": "none"}, "reason=model_not_found: "),
    ],
)
def test_a_request_that_is_refused_says_why_at_its_end(
    two: TwoNeurons, request_id: str, fields: dict[str, object], reason: str
) -> None:
    ask(two, request_id, **fields)
    (end,) = two.lines(request_id)
    assert any(part.startswith(reason) for part in parts(end))


def test_what_http_does_not_allow_is_a_line_as_well(two: TwoNeurons) -> None:
    url = f"{two.gateway.base}/v1/chat/completions"
    headers = {"x-request-id": "http-1"}
    for method, content, status in (("GET", b"", 405), ("POST", b"x", 415)):
        answer = httpx.request(method, url, content=content, headers=headers, trust_env=False)
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "http-1")

    def both() -> list[str]:
        said = [line for line in two.gateway.log.read_text().splitlines() if "request_id=http-1 " in line]
        return said if len(said) == 2 else []

    said = eventually(both, "a line of each in the log")
    assert ["method_not_allowed" in said[0], "unsupported_media_type" in said[1]] == [True, True]
    assert all("request refused" in line for line in said)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, None])
def test_an_id_that_is_no_single_word_is_replaced(http: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given}
    answer = http.get("/version", headers=headers)
    assert len(answer.headers["x-request-id"]) == 24
    assert answer.headers["x-request-id"] == answer.headers["request-id"]


def test_a_line_of_the_log_stays_one(two: TwoNeurons) -> None:
    assert one_line("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert one_line("größer") == "größer"
    ask(two, "line-1", model="echo", reasoning_effort=json.dumps("\n" * 300))
    assert len(two.lines("line-1")) >= 1


def test_a_response_in_the_background_is_one_request_with_its_model(two: TwoNeurons) -> None:
    made = httpx.post(
        f"{two.gateway.base}/v1/responses",
        headers={"x-request-id": "behind"},
        json={"model": "echo", "input": "one two", "background": True},
    )
    assert made.json()["status"] == "queued"
    [line] = [line for line in two.lines("behind") if "request ended" in line]
    assert parts(line) >= {"model=echo", "status=200", "completion_tokens=2"}
