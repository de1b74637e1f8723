"""What is told of models and of the fleet."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from ipc.messages.framing import PROTOCOL_MAJOR, PROTOCOL_MINOR
from tests.gateway.conftest import GatewayProcess, eventually


def test_models_are_listed_in_order_with_where_they_are(http: httpx.Client, gateway: GatewayProcess) -> None:
    ids = [model.id for model in gateway.openai().models.list()]
    assert ids == sorted(ids)
    assert "org/echo" in ids
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert listed["echo"] == {
        "id": "echo",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "cortex",
        "display_name": "echo",
        "status": "ready",
        "loaded": True,
        "capabilities": ["completion", "chat"],
        "locations": [{"neuron": "fake", "status": "ready", "devices": []}],
        "max_model_len": 4096,
        "context_length": 4096,
        "max_input_tokens": 4096,
    }


@pytest.mark.parametrize("path", ["org/echo", "org%2Fecho"])
def test_model_id_may_have_a_slash_in_either_form(http: httpx.Client, path: str) -> None:
    assert http.get(f"/v1/models/{path}").json()["id"] == "org/echo"


def test_sdk_finds_a_model_or_is_told_that_there_is_none(gateway: GatewayProcess) -> None:
    assert gateway.openai().models.retrieve("org/echo").owned_by == "cortex"
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.openai().models.retrieve("org/nothing")
    assert caught.value.code == "model_not_found"


def test_health_tells_all_of_each_neuron(http: httpx.Client) -> None:
    health = http.get("/health").json()
    (neuron,) = health["neurons"]
    assert (health["status"], neuron["name"], neuron["healthy"], neuron["draining"]) == (
        "ok",
        "fake",
        True,
        False,
    )
    assert neuron["devices"][0]["id"] == "cpu"
    assert "echo" in [model["id"] for model in neuron["models"]]


def test_gateway_without_a_neuron_is_alive_and_not_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    process = GatewayProcess(tmp_path_factory.mktemp("alone"), "tcp://127.0.0.1:9")
    try:
        with httpx.Client(base_url=process.base, trust_env=False) as client:
            health = _first_answer(client)
            assert health["status"] == "degraded"
            assert health["neurons"][0]["reason"]
            assert client.get("/ready").status_code == 503
            answer = client.post("/v1/completions", json={"model": "echo", "prompt": "x"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "neuron_lost")
            assert answer.headers["retry-after"]
    finally:
        process.stop()


def _first_answer(client: httpx.Client) -> dict[str, object]:
    def ask() -> httpx.Response | None:
        try:
            return client.get("/health")
        except httpx.TransportError:
            return None

    return eventually(ask, "it answers").json()


def test_version_says_what_runs(http: httpx.Client) -> None:
    version = http.get("/version").json()
    assert version["protocol"] == f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    assert {"version", "python", "gunicorn", "falcon"} <= version.keys()


# --- as Anthropic lists models --------------------------------------------------------------------------

CLAUDE = {"anthropic-version": "2023-06-01"}


def test_a_client_of_anthropic_has_models_in_its_own_shape(http: httpx.Client) -> None:
    body = http.get("/v1/models?limit=1000", headers=CLAUDE).json()
    ids = [model["id"] for model in body["data"]]
    assert ids == sorted(ids)
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, ids[0], ids[-1])
    (echo,) = [model for model in body["data"] if model["id"] == "echo"]
    assert http.get("/v1/models/echo", headers=CLAUDE).json() == echo
    capabilities = echo.pop("capabilities")
    assert echo == {
        "type": "model",
        "id": "echo",
        "display_name": "echo",
        "created_at": "2023-11-14T22:13:20Z",
        "max_input_tokens": 4096,
        "max_tokens": 4096,
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
    }
    assert capabilities["structured_outputs"] == {"supported": True}
    assert capabilities["thinking"]["types"]["adaptive"] == {"supported": False}


def test_pages_of_models_follow_each_other_in_both_directions(http: httpx.Client) -> None:
    def page(query: str) -> dict[str, Any]:
        return http.get(f"/v1/models?{query}", headers=CLAUDE).json()

    everything = [model["id"] for model in page("limit=1000")["data"]]
    assert len(page("")["data"]) == min(20, len(everything))
    forwards: list[str] = []
    query = "limit=7"
    while True:
        part = page(query)
        forwards += [model["id"] for model in part["data"]]
        if not part["has_more"]:
            break
        query = f"limit=7&after_id={part['last_id']}"
    assert forwards == everything
    backwards = everything[-1:]
    while (part := page(f"limit=7&before_id={backwards[0]}"))["data"]:
        backwards = [model["id"] for model in part["data"]] + backwards
        assert part["has_more"] == (backwards[0] != everything[0])
    assert backwards == everything
    assert part == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("after_id=nothing", "after_id"),
        ("before_id=nothing", "before_id"),
        ("after_id=echo&before_id=slow", "before_id"),
    ],
)
def test_a_page_that_cannot_be_is_refused_by_its_parameter(
    http: httpx.Client, query: str, param: str
) -> None:
    answer = http.get(f"/v1/models?{query}", headers=CLAUDE)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{param}: ")
