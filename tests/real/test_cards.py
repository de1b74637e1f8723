"""`neuron check` on real weights says what they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.checkpoints.gguf.header import read_header
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
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=wide)
    return done.returncode, " ".join(done.stdout.split())


def test_real_models_are_found_fit_to_be_served(tmp_path):
    models = [{"id": "gemma", "path": str(GEMMA)}, {"id": "encoder", "path": str(ENCODER)}]
    code, said = neuron_check(tmp_path, models=models)
    assert code == 0
    assert "gemma │ Gemma3ForCausalLM │ bfloat16 │ 32768 │" in said
    assert "encoder │ BertModel │ float32 │ 256 │" in said


def test_a_real_header_is_read_as_its_writer_meant_it():
    assert read_header(GEMMA).metadata["gemma3.attention.sliding_window"] == 512
    tensors = read_tensors(ENCODER)
    assert tensors["embeddings.word_embeddings.weight"].shape == (30_522, 384)
