"""Models that score pairs of texts give the scores that transformers gives."""

from __future__ import annotations

import json
from array import array

import pytest
import torch

from ipc.worker_messages import Submit
from tests.workers import checkpoints
from tests.workers.cards import refusal
from tests.workers.encoders import CLASSIFIERS, load, score, texts, vectors, write, write_modules
from tests.workers.engines import Session, make_runner
from workers.checkpoints.reading import read_card

IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_score_pairs_as_transformers_does(tmp_path, name):
    oracle = write(name, tmp_path)
    inputs, seconds = texts(6, longest=40), [0, 1, 20, 5, 30, 62]
    expected = [score(oracle, ids, second) for ids, second in zip(inputs, seconds, strict=True)]
    found = vectors(load(tmp_path), inputs, seconds)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert len({round(float(each), 3) for each in found}) > 4


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scores_are_what_the_config_says_and_else_between_0_and_1(tmp_path):
    write("bert_classifier", tmp_path)
    card = read_card(tmp_path)
    assert card.reranker.sigmoid
    assert (card.completion, card.chat, card.embedding) == (False, False, False)
    configure(tmp_path, sentence_transformers={"activation_fn": IDENTITY, "version": "5.0"})
    assert not read_card(tmp_path).reranker.sigmoid
    configure(tmp_path, sentence_transformers=None, sbert_ce_default_activation_function=IDENTITY)
    assert not read_card(tmp_path).reranker.sigmoid
    configure(tmp_path, sbert_ce_default_activation_function="torch.nn.Tanh")
    assert "the activation torch.nn.Tanh of scores is not supported" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["bert", "modernbert", "gte", "eurobert"])
def test_what_is_said_of_scores_is_no_obstacle_to_an_encoder_that_makes_none(tmp_path, name):
    write(name, tmp_path)
    configure(tmp_path, sbert_ce_default_activation_function=IDENTITY)
    card = read_card(tmp_path)
    assert (card.reranker, card.embedding) == (None, True)


def test_what_sorts_into_classes_does_not_rank(tmp_path):
    write("bert_classifier", tmp_path)
    configure(tmp_path, id2label={"0": "no", "1": "neither", "2": "yes"})
    assert "a classifier of 3 classes is not supported" in refusal(tmp_path)


YES, NO = 17, 40


def qwen3(folder, readme="# Qwen3-Reranker-0.6B\n"):
    """A tiny one, that says what it is as the real one does."""
    oracle = checkpoints.write("qwen3_tied", folder)
    tokenizer = {"model": {"type": "BPE", "vocab": {"yes": YES, "no": NO}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "README.md").write_text(readme)
    return oracle


@pytest.mark.parametrize("budget", [64, 7], ids=["whole", "chunked"])
def test_a_causal_reranker_weighs_its_two_answers(tmp_path, budget):
    oracle = qwen3(tmp_path)
    card = read_card(tmp_path)
    assert (card.completion, card.chat, card.embedding) == (False, False, False)
    runner = make_runner(tmp_path)
    runner.load(lambda fraction, message: None)
    inputs = [[(7 * i + k) % 131 for i in range(20 + 9 * k)] for k in range(4)]
    packed = [array("I", ids).tobytes() for ids in inputs]
    submits = [Submit(number, ids, 1, pooling="score") for number, ids in enumerate(packed)]
    answers = Session(runner, max_step_tokens=budget).answer(submits)
    for ids, answer in zip(inputs, answers, strict=True):
        assert answer.finish == "stop"
        with torch.inference_mode():
            logits = oracle(torch.tensor([ids])).logits[0, -1]
        expected = (logits[YES] - logits[NO])[None]
        found = torch.frombuffer(bytearray(answer.embedding), dtype=torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_qwen3_that_does_not_say_that_it_ranks_writes(tmp_path):
    qwen3(tmp_path, readme="# Qwen3-0.6B\n\nSee Qwen3-Reranker.\n")
    assert read_card(tmp_path).completion
    write_modules(tmp_path, [("LogitScore", "1_LogitScore", {"true_token_id": YES})])
    assert "LogitScore is supported in Qwen3-Reranker alone" in refusal(tmp_path)
