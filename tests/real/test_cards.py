"""`neuron check` on real weights: it says what they are, and what is missing to serve them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.checkpoints.gguf import read_gguf
from workers.checkpoints.safetensors import read_tensors

FOLDER = Path(os.environ.get("CORTEX_REAL_MODELS", ""))
GEMMA, ENCODER = FOLDER / "gemma-3-270m-q4_k_m.gguf", FOLDER / "all-MiniLM-L6-v2"

pytestmark = pytest.mark.skipif("CORTEX_REAL_MODELS" not in os.environ, reason="make test-real fetches them")


def neuron_check(folder: Path, **config: object) -> tuple[int, str]:
    """The exit code of `neuron check`, and what it says, on one line."""
    (folder / "neuron.yaml").write_text(
        repr({"devices": ["cpu"], "hf_cache": str(folder / "none"), **config})
    )
    command = [sys.executable, "-m", "neuron", "check", "--config", str(folder / "neuron.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, " ".join(done.stdout.split())


def test_what_is_configured_and_cannot_be_served_is_a_problem_that_says_what_it_is(tmp_path):
    models = [{"id": "gemma", "path": str(GEMMA)}, {"id": "encoder", "path": str(ENCODER)}]
    code, said = neuron_check(tmp_path, models=models)
    assert code == 1
    assert "gemma3, 268.1M parameters, 18 layers, a context of 32,768" in said
    assert "109 F32, 81 Q5_0, 27 Q4_K, 10 Q8_0, 9 Q6_K" in said
    assert "GGUF is not supported yet" in said
    assert "encoder │ BertModel │ float32 │ 256 │" in said


def test_what_lies_in_a_model_folder_is_not_offered_and_no_problem(tmp_path):
    code, said = neuron_check(tmp_path, model_folders=[str(FOLDER)])
    assert code == 0
    assert "all-MiniLM-L6-v2 is not offered" in said


def test_a_real_header_is_read_as_its_writer_meant_it():
    assert read_gguf(GEMMA).metadata["gemma3.attention.sliding_window"] == 512
    tensors = read_tensors(ENCODER)
    assert tensors["embeddings.word_embeddings.weight"].shape == (30_522, 384)
