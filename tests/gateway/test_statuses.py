"""Which status, error and wait each situation has in each dialect."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.refusals import HTTP_CODES, STATUSES, Refusal
from ipc.errors import Code
from ipc.messages.replies import Failed
from tests import streams
from tests.gateway.conftest import PATIENCE, GatewayProcess, NeuronThread, client_of, eventually
from tests.gateway.fake_neuron import MODELS

ASKED = "one two three four"


@dataclass(frozen=True)
class Dialect:
    """How one API is asked, and where its errors say what they are."""

    path: str
    fields: dict[str, Any]
    reader: Callable[[bytes], Any]  # of its streams
    is_anthropics: bool = False

    def kind(self, error: dict[str, Any]) -> str:
        return error["type"] if self.is_anthropics else error["code"]


DIALECTS = {
    "chat": Dialect("/v1/chat/completions", {"messages": [{"role": "user", "content": ASKED}]}, streams.chat),
    "completions": Dialect("/v1/completions", {"prompt": ASKED}, streams.completion),
    "responses": Dialect("/v1/responses", {"input": ASKED}, streams.responses),
    "messages": Dialect(
        "/v1/messages",
        {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 50},
        streams.anthropic,
        True,
    ),
}


@pytest.fixture(scope="module")
def busy() -> Iterator[NeuronThread]:
    """A neuron whose model `full` says how long its queue is."""
    thread = NeuronThread(models=(*MODELS, "full"), refuses={"full": "queue_full"})
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def impatient(busy: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that lets nobody wait in silence for long."""
    folder = tmp_path_factory.mktemp("impatient")
    process = GatewayProcess(folder, busy.endpoint, load_wait_seconds=0.3)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture
def client(impatient: GatewayProcess, busy: NeuronThread) -> Iterator[httpx.Client]:
    with client_of(impatient, busy) as client:
        yield client


@dataclass(frozen=True)
class Refused:
    """What a client is told: an HTTP status, and what the error calls itself.

    Attributes:
        wait: `Retry-After`; None: the answer says that trying again is of no use, or that it is the client's.
    """

    status: int
    code: str
    anthropics: tuple[int, str]
    wait: int | None = None


INVALID = 400, "invalid_request_error"
OVERLOADED = 529, "overloaded_error"

# By situation: a model, or a whole body, and what who asks so is told.
SITUATIONS = {
    "queue full": ("full", Refused(503, "queue_full", OVERLOADED, 7)),
    "queue full, and the neuron does not say for how long": (
        "fails/queue_full",
        Refused(503, "queue_full", OVERLOADED, 1),
    ),
    "model loads for longer than the limit": ("cold", Refused(503, "model_loading", OVERLOADED, 12)),
    "prompt too long": ("fails/context_length_exceeded", Refused(400, "context_length_exceeded", INVALID)),
    "unknown model": ("nothing", Refused(404, "model_not_found", (404, "not_found_error"))),
    "template refuses": (
        "fails/template_failed",
        Refused(422, "template_failed", INVALID),
    ),
    "worker died": ("fails/worker_died", Refused(503, "worker_died", OVERLOADED, 2)),
    "load failed": ("fails/model_load_failed", Refused(500, "model_load_failed", (500, "api_error"))),
    "neuron ends": ("fails/shutting_down", Refused(503, "shutting_down", OVERLOADED, 5)),
    "body is no JSON": (b"{", Refused(400, "bad_request", INVALID)),
    "body is not UTF-8": (b'{"model":"\xff"}', Refused(400, "bad_request", INVALID)),
    "field is missing": (b"{}", Refused(400, "bad_request", INVALID)),
    "body too large": (b"[" * 300_000, Refused(413, "request_too_large", (413, "request_too_large"))),
}


CASES = [
    pytest.param(asked, told, dialect, streamed, id=f"{situation}, {name}, {streamed}")
    for situation, (asked, told) in SITUATIONS.items()
    for name, dialect in DIALECTS.items()
    for streamed in (False, True)
    # These are told in the stream, as tests below have it.
    if not (streamed and asked == "cold")
    and not (streamed and asked == "fails/context_length_exceeded" and name == "responses")
]


@pytest.mark.parametrize(("asked", "told", "dialect", "streamed"), CASES)
def test_what_is_refused_before_the_answer_began(
    client: httpx.Client, asked: str | bytes, told: Refused, dialect: Dialect, streamed: bool
) -> None:
    if isinstance(asked, bytes):
        answer = client.post(dialect.path, content=asked, headers={"content-type": "application/json"})
    else:
        answer = client.post(dialect.path, json=dialect.fields | {"model": asked, "stream": streamed})
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    status, kind = told.anthropics if dialect.is_anthropics else (told.status, told.code)
    assert (answer.status_code, dialect.kind(body["error"])) == (status, kind), body
    assert answer.headers.get("retry-after") == (None if told.wait is None else str(told.wait))
    assert (answer.headers.get("x-should-retry") == "false") == (told.wait is None and status >= 500)
    assert body["error"]["message"]
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    if dialect.is_anthropics:
        assert (body["type"], body["request_id"]) == ("error", answer.headers["request-id"])


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_who_waited_in_vain_for_a_load_is_told_how_far_it_is(client: httpx.Client, dialect: Dialect) -> None:
    error = client.post(dialect.path, json=dialect.fields | {"model": "cold"}).json()["error"]
    assert error["details"] == {"status": "loading", "progress": 0.25, "seconds_left": 11.2}
    assert "25%" in error["message"]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_stream_waits_for_a_load_and_says_how_far_it_is(
    client: httpx.Client, busy: NeuronThread, dialect: Dialect
) -> None:
    body = dialect.fields | {"model": "cold", "stream": True}
    with client.stream("POST", dialect.path, json=body) as answer:
        assert answer.status_code == 200
        said = ""
        for text in answer.iter_text():
            said += text
            if ": loading 25% weights, 11 s left" in said and "keep-alive" in said:
                break
    if dialect.path == "/v1/responses":
        assert said.startswith("event: response.created\n")


LATE = ("breaks/worker_died", "late/queue_full", "late/context_length_exceeded")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("model", LATE)
def test_what_fails_in_a_stream_cannot_be_taken_for_an_end(
    client: httpx.Client, model: str, dialect: Dialect
) -> None:
    answer = client.post(dialect.path, json=dialect.fields | {"model": model, "stream": True})
    assert answer.status_code == 200
    with pytest.raises(streams.Failed) as caught:
        dialect.reader(answer.content)
    code = model.partition("/")[2]
    too_long = code == "context_length_exceeded"
    if dialect.is_anthropics:
        code = INVALID[1] if too_long else OVERLOADED[1]
    elif dialect.path == "/v1/responses" and not too_long:
        code = "server_error"
    assert dialect.kind(caught.value.error) == code


def test_a_prompt_that_is_too_long_fails_in_the_stream_of_responses(client: httpx.Client) -> None:
    """Codex looks for it there, and makes its conversation shorter."""
    dialect = DIALECTS["responses"]
    body = dialect.fields | {"model": "fails/context_length_exceeded", "stream": True}
    answer = client.post(dialect.path, json=body)
    assert answer.status_code == 200
    with pytest.raises(streams.Failed) as caught:
        streams.responses(answer.content)
    assert caught.value.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/v1/models/nothing"])
def test_an_error_at_an_address_of_nobody_goes_by_the_client_s_headers(
    client: httpx.Client, path: str
) -> None:
    assert client.get(path).json()["error"]["code"] in ("route_not_found", "model_not_found")
    told = client.get(path, headers={"anthropic-version": "2023-06-01"})
    assert (told.status_code, told.json()["error"]["type"]) == (404, "not_found_error")
    assert told.json()["request_id"] == told.headers["request-id"]


@pytest.mark.parametrize("base", ["", "/v1/v1", "/v1//v1", "/api/v1", "/v1/openai"])
def test_a_wrong_base_url_is_told_where_the_address_is(client: httpx.Client, base: str) -> None:
    error = client.post(f"{base}/chat/completions", json={}).json()["error"]
    assert error["code"] == "route_not_found"
    assert ("/v1/chat/completions:" in error["message"]) == (base != "/v1/openai")


def test_a_slash_at_the_end_is_no_other_address(client: httpx.Client) -> None:
    assert client.get("/v1/models/").json()["object"] == "list"
    assert client.get("/v1/models/echo/").json()["id"] == "echo"
    assert client.post("/v1/chat/completions/", json={}).status_code == 400
    assert client.post("/v1/responses/", json={}).json()["error"]["param"] == "model"


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_without_a_neuron_it_says_when_to_come_again(alone: GatewayProcess, dialect: Dialect) -> None:
    answer = httpx.post(
        alone.base + dialect.path, json=dialect.fields | {"model": "echo"}, trust_env=False, timeout=PATIENCE
    )
    status, kind = OVERLOADED if dialect.is_anthropics else (503, "neuron_lost")
    assert (answer.status_code, dialect.kind(answer.json()["error"])) == (status, kind)
    assert answer.headers["retry-after"] == "2"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose neuron is not there."""
    process = GatewayProcess(tmp_path_factory.mktemp("alone"), "tcp://127.0.0.1:9")

    def answers() -> bool:
        try:
            return httpx.get(f"{process.base}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(answers, "it answers")
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_a_neuron_that_names_no_real_time_gets_the_usual_one(seconds: float) -> None:
    failed = Failed(id=1, code=Code.QUEUE_FULL, message="full", retry_after=seconds)
    assert Refusal.of(failed.error()).retry_after == STATUSES[Code.QUEUE_FULL].retry_after


def test_the_pages_have_every_code_with_its_status() -> None:
    pages = Path(__file__).parents[2] / "docs"
    told: dict[str, int] = {}
    (listed,) = re.findall(
        r"^.*?Every error has a `code`(.*?)\n\n", (pages / "operations.md").read_text(), re.S | re.M
    )
    for codes, status in re.findall(r"([^;(]*(?:\(and[^;(]*)?)\((\d{3})", listed):
        told |= dict.fromkeys(re.findall(r"`([a-z_]{6,})`", codes), int(status))
    (table,) = re.findall(r"^\| status \| code.*?\n\n", (pages / "api.md").read_text(), re.S | re.M)
    for statuses, codes in re.findall(r"^\| ([\d, ]+) \| (.*?) \|", table, re.M):
        told |= zip(re.findall(r"`(\w+)`", codes), map(int, statuses.split(", ")), strict=False)
    ours = {code: answer.status for code, answer in STATUSES.items()}
    ours |= {code: status for status, code in HTTP_CODES.items()} | {"http_error": 400}
    assert told == ours
