"""`cortex models check`: every model of a catalogue explained, and exit codes for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.commands import models
from gateway.commands.cli import app
from ipc.messages.catalogue import Appraisal
from tests.gateway.conftest import NeuronThread
from tests.ports import free_ports


@pytest.fixture
def neurons():
    """Two of them, which say `appraisals`."""
    threads = [NeuronThread(name=name) for name in ("beast", "small")]
    yield threads
    for thread in threads:
        thread.close()


def appraisals(**verdicts: str) -> dict[str, Appraisal]:
    return {name: Appraisal(model=name, verdict=verdict) for name, verdict in verdicts.items()}


@pytest.fixture
def check(tmp_path: Path, neurons, monkeypatch: pytest.MonkeyPatch):
    """Run it on a catalogue of these models; exit code and output, decoded where it is JSON."""
    monkeypatch.setattr(models, "HELLO_SECONDS", 2.0)

    def check(catalogue: object, *options: str, endpoints: list[str] | None = None):
        places = endpoints or [thread.endpoint for thread in neurons]
        entries = [{"name": n, "endpoint": e} for n, e in zip(("beast", "small"), places, strict=True)]
        config = {"models_config": "models.yaml", "neurons": entries}
        (tmp_path / "cortex.yaml").write_text(json.dumps(config))
        text = catalogue if isinstance(catalogue, str) else json.dumps(catalogue)
        (tmp_path / "models.yaml").write_text(text)
        arguments = ["models", "check", "--config", str(tmp_path / "cortex.yaml"), *options]
        result = CliRunner().invoke(app, arguments)
        output = result.stdout if result.stdout else result.stderr
        return result.exit_code, json.loads(output) if "--json" in options else output

    return check


CATALOGUE = {
    "defaults": {"keep_alive": "30m"},
    "models": [
        {"id": "a", "aliases": ["gpt-4o"], "priority": 7, "harness": "candle"},
        {"id": "b", "pinned_on": ["beast"], "keep_alive": None},
    ],
}


def test_every_model_is_explained_for_every_host(check, neurons) -> None:
    beast, small = (thread.neuron for thread in neurons)
    beast.appraisals = {
        "a": Appraisal(
            model="a",
            verdict="fits",
            path="/models/a",
            devices=["cuda:0"],
            bytes=3 << 30,
            context_length=4096,
            context_wanted=8192,
        ),
        **appraisals(b="fits"),
    }
    small.appraisals = {
        "a": Appraisal(model="a", verdict="own", message="its own file has it, with another ranks"),
        "b": Appraisal(model="b", verdict="refused", message="it is served by beast only"),
    }
    code, text = check(CATALOGUE)
    assert code == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "a beast fits 3.0 GiB 4096 of 8192 cuda:0 /models/a" in lines
    assert "a small its own file counts its own file has it, with another ranks" in lines
    assert "b small not served here it is served by beast only" in lines
    assert "a: also called gpt-4o; sets priority; inherits keep_alive" in lines
    assert "b: sets pinned_on" in lines
    assert "models[0].harness changes nothing: there is one engine" in lines
    assert lines[-1].endswith("models.yaml can be used: 2 models")
    assert [each.id for each in small.checked[-1].models] == ["a"]


def test_a_model_that_no_host_can_serve_is_an_exit_code(check, neurons) -> None:
    beast, small = (thread.neuron for thread in neurons)
    beast.appraisals, small.appraisals = (
        appraisals(a="fits", b="too_large"),
        appraisals(a="broken", b="refused"),
    )
    code, report = check(CATALOGUE, "--json")
    assert code == 2
    assert {each["model"]: each["unserved"] for each in report["models"]} == {"a": False, "b": True}
    assert report["models"][1]["hosts"]["beast"]["verdict"] == "too_large"
    _, text = check(CATALOGUE)
    assert "b can be served nowhere" in text


def test_hosts_that_do_not_answer_are_told_of_and_may_serve_anything(check) -> None:
    nowhere = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    code, report = check(CATALOGUE, "--json", endpoints=nowhere)
    assert code == 0
    assert nowhere[0] in report["silent"]["beast"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("models: [{id: a, rank: 1}]", "models[0].rank: unknown key"), ("models: [", "line 1")],
)
def test_a_file_that_cannot_be_used_is_one_line_and_an_exit_code(check, text: str, words: str) -> None:
    code, said = check(text)
    assert code == 1
    assert said.count("\n") == 1
    assert words in said


def test_without_a_catalogue_it_says_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "cortex.yaml").write_text("")
    result = CliRunner().invoke(app, ["models", "check", "--config", str(tmp_path / "cortex.yaml")])
    assert result.exit_code == 1
    assert "models_config" in result.stderr
