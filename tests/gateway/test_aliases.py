"""Further names of models: what they mean, how they are listed, and what is said where they lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway import config
from gateway.aliases import AliasError, Aliases
from gateway.commands.up_plan import UpError, parse_aliases
from ipc.model_settings import MAX_MODEL_ID
from ipc.settings import ConfigError
from tests import streams
from tests.gateway.conftest import PATIENCE, GatewayProcess, NeuronThread, eventually

MODELS = {"qwen3-8b", "org/coder", "claude-home", "tagged:latest"}
ALIASES = Aliases(
    {
        "gpt-4o": "best",
        "best": "qwen3-8b",
        "claude-haiku*": "org/coder",
        "claude-*": "best",
        "*-mini-*x": "qwen3-8b",
        "lost": "nothing",
    }
)


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("qwen3-8b", "qwen3-8b"),
        ("gpt-4o", "qwen3-8b"),  # an alias of an alias
        ("claude-haiku-4-5", "org/coder"),  # the first pattern that fits
        ("claude-sonnet-4-5", "qwen3-8b"),
        ("claude-", "qwen3-8b"),
        ("claude-home", "claude-home"),  # a model wins over a pattern
        ("o4-mini-high-x", "qwen3-8b"),
        ("-mini-x", "qwen3-8b"),
        ("-mini-", "-mini-"),
        ("qwen3-8b:latest", "qwen3-8b"),
        ("gpt-4o:latest", "qwen3-8b"),
        ("tagged:latest", "tagged:latest"),  # a model has its own name
        ("unheard:latest", "unheard"),
        (":latest", ":latest"),
        ("unheard", "unheard"),
        ("lost", "nothing"),
        ("claude-" + "x" * MAX_MODEL_ID, "claude-" + "x" * MAX_MODEL_ID),
    ],
)
def test_a_name_leads_to_a_model(asked: str, model: str) -> None:
    assert ALIASES.resolve(asked, MODELS.__contains__) == model


def test_a_pattern_that_fits_its_own_target_is_no_circle() -> None:
    aliases = Aliases({"qwen*": "qwen3-8b"})
    assert aliases.resolve("qwen2", lambda _: False) == "qwen3-8b"


def test_stars_are_matched_in_one_pass() -> None:
    aliases = Aliases({"*a" * 100 + "b": "m"})
    assert aliases.resolve("a" * MAX_MODEL_ID, lambda _: False) == "a" * MAX_MODEL_ID


def test_those_that_lead_to_a_model_are_listed() -> None:
    assert ALIASES.listed(MODELS.__contains__) == {
        "gpt-4o": "qwen3-8b",
        "best": "qwen3-8b",
        "claude-haikucoder": "org/coder",
        "claude-qwen3-8b": "qwen3-8b",
    }


@pytest.mark.parametrize(
    ("targets", "name", "words"),
    [
        ({"a": "a"}, "a", "a -> a"),
        ({"a": "b", "b": "c", "c": "a"}, "a", "a -> b -> c -> a"),
        ({"x*": "a", "a": "b", "b": "a"}, "x*", "back to itself"),
        ({"a": ""}, "a", "1 to"),
        ({"": "a"}, "", "1 to"),
        ({"a": "m*"}, "a", "stars"),
    ],
)
def test_one_that_cannot_be_used_stops_the_start(
    tmp_path: Path, targets: dict[str, str], name: str, words: str
) -> None:
    with pytest.raises(AliasError, match=words.replace("*", r"\*")) as caught:
        Aliases(targets)
    assert caught.value.name == name
    path = tmp_path / "cortex.yaml"
    path.write_text("aliases:\n" + "".join(f"  '{key}': '{value}'\n" for key, value in targets.items()))
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    assert refused.value.key == f"aliases.{name}"


def test_cortex_up_takes_aliases_of_the_models_that_it_starts() -> None:
    targets = {"claude-*": "demo", "gpt-4o": "claude-x", "claude-x": "demo"}
    assert parse_aliases([f"{name}={target}" for name, target in targets.items()], ["demo"]) == targets
    for text, words in [
        ("gpt-4o", "NAME=MODEL"),
        ("gpt-4o=dem", "demo"),
        ("a=a", "a -> a"),
        ("=demo", "1 to"),
    ]:
        with pytest.raises(UpError, match=words) as caught:
            parse_aliases([text], ["demo"])
        assert f"--alias {text}" in str(caught.value)


# --- through a gateway ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aliased(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    aliases = {"gpt-4o": "org/echo", "claude-*": "echo", "broken": "fails/model_load_failed", "dead": "gone"}
    process = GatewayProcess(tmp_path_factory.mktemp("aliased"), neuron.endpoint, aliases=aliases)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture
def client(aliased: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=aliased.base, trust_env=False, timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "model"), [("gpt-4o", "org/echo"), ("claude-opus-4", "echo"), ("echo:latest", "echo")]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_answer_has_the_name_that_was_asked_for(
    client: httpx.Client, neuron: NeuronThread, path: str, asked: str, model: str
) -> None:
    body = {"model": asked, "messages": [{"role": "user", "content": "a b"}]}
    if path == "/v1/completions":
        body = {"model": asked, "prompt": "a b"}
    assert client.post(path, json=body).json()["model"] == asked
    assert neuron.neuron.served[-1].model == model
    with client.stream("POST", path, json=body | {"stream": True}) as answer:
        chunks = [line for line in answer.iter_lines() if line.startswith("data: {")]
    assert all(f'"model":"{asked}"' in chunk for chunk in chunks)


def test_a_message_has_the_name_that_was_asked_for(client: httpx.Client, neuron: NeuronThread) -> None:
    body = {"model": "claude-opus-4", "max_tokens": 9, "messages": [{"role": "user", "content": "a b"}]}
    assert client.post("/v1/messages", json=body).json()["model"] == "claude-opus-4"
    assert neuron.neuron.served[-1].model == "echo"
    streamed = client.post("/v1/messages", json=body | {"stream": True})
    assert streams.anthropic(streamed.content)["model"] == "claude-opus-4"
    assert client.post("/v1/messages/count_tokens", json=body).json() == {"input_tokens": 2}


def test_aliases_are_listed_as_what_they_are(client: httpx.Client) -> None:
    listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
    assert list(listed) == sorted(listed)
    assert listed["gpt-4o"]["alias_of"] == "org/echo"
    assert listed["gpt-4o"]["display_name"] == "gpt-4o (echo)"
    assert listed["gpt-4o"]["context_length"] == 4096
    assert listed["claude-echo"]["alias_of"] == "echo"
    assert "alias_of" not in listed["echo"]
    assert listed["echo"]["display_name"] == listed["org/echo"]["display_name"] == "echo"
    assert "dead" not in listed
    assert client.get("/v1/models/claude-sonnet-4").json()["alias_of"] == "echo"


def test_who_asks_for_an_alias_is_told_where_it_leads(client: httpx.Client, aliased: GatewayProcess) -> None:
    body = {"model": "dead", "prompt": "x"}
    for answer in (client.post("/v1/completions", json=body), client.get("/v1/models/dead")):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "model_not_found")
        assert error["message"].startswith("'dead' is an alias of 'gone': ")
    failed = client.post("/v1/completions", json=body | {"model": "broken"})
    assert "'broken' is an alias of 'fails/model_load_failed': " in failed.json()["error"]["message"]
    assert "alias=dead model=gone" in aliased.log.read_text()  # at the start
    eventually(lambda: "model='gone' alias='dead'" in aliased.log.read_text(), "the request is in the log")


def test_metrics_have_models_by_their_own_name(client: httpx.Client, aliased: GatewayProcess) -> None:
    client.post("/v1/completions", json={"model": "claude-x", "prompt": "x"})
    assert not [series for series in aliased.metrics() if "claude" in series or "gpt" in series]
