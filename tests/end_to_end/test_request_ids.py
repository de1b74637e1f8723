"""One id finds every line about a request, in the gateway's log and in the neuron's."""

import re

import httpx
import pytest
from typer.testing import CliRunner

from gateway.commands.cli import app
from tests.end_to_end.harness import PATIENCE, Services, wait_until

CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
SIMULATED = {"id": "sim", "simulated": {"context_length": 1000}, "devices": ["cpu"], "pin": True}


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    neuron = {"models": [SIMULATED], "only_configured": True, "devices": ["cpu"]}
    with Services(tmp_path_factory.mktemp("ids"), neuron, {}) as services:
        wait_until(services.ready, "the gateway to be ready")
        yield services


def lines(services, request_id):
    """What each of the two logs says of a request, once both have said something."""

    def said():
        found = [
            [line for line in program.log.read_text().splitlines() if request_id in line.split(key)[-1]]
            for program, key in ((services.gateway, "request_id="), (services.neuron, "trace="))
        ]
        return found if all(found) else None

    return wait_until(said, f"{request_id} in both logs")


@pytest.mark.parametrize(
    ("request_id", "path", "body", "status", "reasons"),
    [
        ("whole-1", "/v1/chat/completions", CHAT | {"model": "sim"}, 200, ("reason=length", "reason=length")),
        (
            "stream-1",
            "/v1/messages",
            CHAT | {"model": "sim", "stream": True},
            200,
            ("reason=length", "reason=length"),
        ),
        (
            "long-1",
            "/v1/responses",
            {"model": "sim", "input": "word " * 2000},
            400,
            ("reason=context_length_exceeded: ", "reason=context_length_exceeded: "),
        ),
        ("count-1", "/v1/messages/count_tokens", CHAT | {"model": "sim"}, 200, ("status=200", "TokenCount")),
        (
            "embed-1",
            "/v1/embeddings",
            {"model": "sim", "input": "x"},
            400,
            ("reason=not_supported: ", "reason=not_supported: "),
        ),
    ],
)
def test_both_logs_tell_of_a_request_by_its_id(services, request_id, path, body, status, reasons):
    answer = httpx.post(
        f"{services.base}{path}", json=body, headers={"x-request-id": request_id}, timeout=PATIENCE
    )
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, request_id), answer.text
    for said, reason in zip(lines(services, request_id), reasons, strict=True):
        assert reason in said[-1]


def test_it_is_found_where_the_log_has_warnings_alone(cortex):
    body, headers = CHAT | {"model": "simulated"}, {"x-request-id": "quiet-1"}
    answer = httpx.post(f"{cortex.base}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    told = CliRunner().invoke(app, ["logs", "--request", "quiet-1", "--endpoint", cortex.base])
    assert re.fullmatch(r"\S+: .* request finished id=\d+ trace=quiet-1 .*\n", told.output)
    assert "quiet-1" not in cortex.everything()
