"""Models made to write that were trained to embed: Qwen3-Embedding and its kind."""

from __future__ import annotations

import json
from array import array

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.worker_messages import Submit
from tests.workers import checkpoints
from tests.workers.cards import refusal
from tests.workers.encoders import write_modules
from tests.workers.engines import Session, make_runner
from workers.checkpoints.reading import read_card

LAST = ("Pooling", "1_Pooling", {"word_embedding_dimension": 48, "pooling_mode_lasttoken": True})


def write(folder):
    """As Qwen3-Embedding is published: the decoder alone, without its head and under names of its own."""
    oracle = checkpoints.write("qwen3_untied_biased", folder)
    path = folder / "model.safetensors"
    stored = {
        name.removeprefix("model."): x for name, x in load_file(path).items() if name != "lm_head.weight"
    }
    save_file(stored, path)
    write_modules(folder, [LAST, ("Normalize", "2_Normalize", None)])
    settings = {"prompts": {"query": "Instruct: find\nQuery:", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("**MRL Support**: user-defined output dimensions\n")
    return oracle


@pytest.mark.parametrize("budget", [64, 9], ids=["whole", "chunked"])
def test_its_vector_is_the_last_hidden_state_from_cached_prefixes_too(tmp_path, budget):
    oracle = write(tmp_path)
    runner = make_runner(tmp_path)
    runner.load(lambda fraction, message: None)
    prefix = [(3 * i + 1) % 131 for i in range(70)]
    inputs = [[*prefix, *((7 * i + k) % 131 for i in range(5 * k + 1))] for k in range(4)]
    submits = [Submit(n, array("I", ids).tobytes(), 1, pooling="last") for n, ids in enumerate(inputs)]
    answers = Session(runner, max_step_tokens=budget).answer(submits)
    assert any(answer.cached_tokens for answer in answers)
    for ids, answer in zip(inputs, answers, strict=True):
        with torch.inference_mode():
            expected = oracle.model(torch.tensor([ids])).last_hidden_state[0, -1]
        found = torch.frombuffer(bytearray(answer.embedding), dtype=torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_it_embeds_and_writes_nothing_and_its_files_say_how(tmp_path):
    write(tmp_path)
    card = read_card(tmp_path)
    assert (card.completion, card.chat, card.embedding) == (False, False, True)
    assert (card.pooling, card.embedder.normalize, card.embedder.cuts) == ("last", True, ())
    assert card.embedder.prompts["query"] == "Instruct: find\nQuery:"
    assert "lm_head.weight" not in card.tensors


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ([("Pooling", "1_Pooling", {"pooling_mode_cls_token": True})], "pooling by cls after a causal model"),
        (
            [LAST, ("Dense", "2_Dense", {"in_features": 48, "out_features": 8})],
            "Dense after a causal model is not supported",
        ),
    ],
)
def test_what_chunks_and_cached_prefixes_cannot_give_is_refused(tmp_path, modules, reason):
    write(tmp_path)
    write_modules(tmp_path, modules)
    (tmp_path / "2_Dense").mkdir(exist_ok=True)
    save_file({"linear.weight": torch.zeros(8, 48)}, tmp_path / "2_Dense" / "model.safetensors")
    assert reason in refusal(tmp_path)
