"""`neuron check` says what is offered, what is not and why, and what is not as the files have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from neuron.cli import app
from neuron.processes.worker import Worker
from tests.neuron.folders import CONFIG, write_checkpoint

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs the command over a configuration; what it prints, on one line, and the exit code."""
    monkeypatch.setattr(Worker, "measure", lambda kind: 0)

    def run(**config: Any) -> tuple[int, str]:
        file = tmp_path / "neuron.yaml"
        file.write_text(json.dumps({"devices": ["cpu"], "hf_cache": str(tmp_path / "none"), **config}))
        result = CliRunner().invoke(app, ["check", "--config", str(file)], env={"COLUMNS": "200"})
        return result.exit_code, " ".join(result.output.split())

    return run


def configured(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"models": [{"id": "mine", "path": str(folder), **settings}]}


def test_what_is_not_followed_is_a_note(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 4, "temperature": "0.6"}))
    code, said = check(**configured(folder))
    assert code == 0
    assert "mine: generation_config.json: num_beams 4 is not followed" in said
    assert "mine: generation_config.json: temperature '0.6' is a text, and read as 0.6" in said


def test_a_context_that_positions_do_not_reach_is_cut_with_a_word(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    code, said = check(**configured(folder, context_length=8192))
    assert code == 0
    assert "mine: context_length 8192 is cut to 512, which the model was made for" in said


def test_a_yarn_has_the_context_that_it_is_stretched_to(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model", rope_scaling=YARN)
    _, said = check(**configured(folder, context_length=2048))
    assert "is cut" not in said
    assert " 2048 " in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantization_config": {"quant_method": "hqq"}}, "quantised (hqq)"),
        ({"hidden_act": "relu"}, "hidden_act relu is not supported"),
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "proportional"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not understood"),
        ({"architectures": ["ElectraModel"]}, "ElectraModel is not supported"),
    ],
)
def test_what_cannot_be_served_says_why_wherever_it_lies(check, tmp_path, changes, reason):
    folder = write_checkpoint(tmp_path / "shelf" / "model", **CONFIG | changes)
    code, said = check(**configured(folder))
    assert (code, reason in said) == (1, True), said
    code, said = check(model_folders=[str(tmp_path / "shelf")])
    assert code == 0
    assert "model is not offered: " in said
    assert reason in said


def test_a_gguf_file_is_told_for_what_it_is(check, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    code, said = check(**configured(tmp_path / "model.gguf"))
    assert code == 1
    assert "model.gguf: is unknown, 0.0M parameters" in said
    assert "such files are not supported; there are llama" in said
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16)
    assert "entries, above" in check(**configured(tmp_path / "model.gguf"))[1]
