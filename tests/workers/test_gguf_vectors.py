"""GGUF files of what embeds and what ranks: the same vectors and scores as the checkpoint gives."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from ipc.errors import CortexError
from ipc.worker_messages import Submit
from tests.workers import encoders, gguf_files, nomic_experts
from tests.workers.engines import Session
from tests.workers.oracle import fill
from tests.workers.thread_ranks import Ranks
from workers.checkpoints.reading import read_card


@pytest.mark.parametrize(
    ("name", "said", "pooling"),
    [
        ("bert", {}, "mean"),
        ("bert", {"pooling_type": 2}, "cls"),
        ("nomic_bert", {"pooling_type": 1}, "mean"),
        ("modernbert", {"pooling_type": 2}, "cls"),
    ],
)
def test_a_converted_encoder_makes_the_same_vectors(tmp_path, name, said, pooling):
    oracle = encoders.write(name, tmp_path / "checkpoint")
    card = read_card(gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", **said))
    assert (card.family, card.pooling, card.embedder.normalize) == (name, pooling, True)
    assert (card.completion, card.context_length) == (False, 160)
    inputs = encoders.texts(6)
    hidden = [encoders.hidden(oracle, ids) for ids in inputs]
    wanted = [states[0] if pooling == "cls" else states.mean(0) for states in hidden]
    found = encoders.vectors(encoders.load(tmp_path / "model.gguf"), inputs)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_converted_gemma_that_embeds_makes_the_same_vectors(tmp_path, is_dense):
    torch.manual_seed(3)
    oracle = encoders.gemma(query_pre_attn_scalar=16)  # the size of a head: files do not say it
    fill(oracle, std=0.3)
    oracle.save_pretrained(tmp_path / "checkpoint")
    size = oracle.config.hidden_size
    dense = {"dense_2.weight": torch.randn(64, size), "dense_3.weight": torch.randn(size, 64) / 8}
    more = {"gemma-embedding.pooling_type": 1, "gemma-embedding.attention.causal": False}
    if is_dense:
        more |= {"gemma-embedding.dense_2_feat_out": 64, "gemma-embedding.dense_3_feat_in": 64}
    path = gguf_files.write(
        tmp_path / "model.gguf", tmp_path / "checkpoint", more=more, dense=dense if is_dense else None
    )
    card = read_card(path)
    assert (card.family, card.pooling, card.embedder.size) == ("gemma3", "mean", size)
    assert (card.completion, len(card.embedder.stages)) == (False, 2 * is_dense)
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.hidden(oracle, ids).mean(0) for ids in inputs])
    if is_dense:
        wanted = wanted @ dense["dense_2.weight"].t() @ dense["dense_3.weight"].t()
    found = torch.stack(encoders.vectors(encoders.load(path), inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_converted_eurobert_makes_the_same_vectors(tmp_path):
    oracle = encoders.write("eurobert", tmp_path / "checkpoint")
    more = {"pooling_type": 3, "attention.causal": False, "rope.scaling.type": "none"}
    more = {f"eurobert.{key}": value for key, value in more.items()}
    card = read_card(path := gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", more=more))
    assert (card.family, card.pooling, card.completion) == ("eurobert", "last", False)
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.hidden(oracle, ids)[-1] for ids in inputs])
    found = torch.stack(encoders.vectors(encoders.load(path), inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_converted_nomic_bert_with_experts_makes_the_vectors_of_one_without_their_bias(tmp_path):
    oracle = nomic_experts.model(expert_bias=False)
    path = nomic_experts.write_gguf(tmp_path / "model.gguf", oracle)
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.hidden(oracle, ids).mean(0) for ids in inputs])
    found = torch.stack(encoders.vectors(encoders.load(path), inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert_of_32", "nomic_bert_of_32"])
def test_an_encoder_in_blocks_makes_nearly_the_same_vectors(tmp_path, name):
    oracle = encoders.write(name, tmp_path / "checkpoint")
    gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0")
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.hidden(oracle, ids).mean(0) for ids in inputs])
    found = torch.stack(encoders.vectors(encoders.load(tmp_path / "model.gguf"), inputs))
    assert torch.cosine_similarity(found, wanted).min() > 0.999


@pytest.mark.parametrize(
    ("name", "said", "pooling"),
    [
        ("xlm_roberta_classifier", {"pooling_type": 4}, "cls"),
        ("modernbert_classifier", {"classifier__pooling_type": 2}, "cls"),
        ("modernbert_averaged_classifier", {}, "mean"),
    ],
)
def test_a_converted_reranker_scores_as_it_did(tmp_path, name, said, pooling):
    oracle = encoders.write(name, tmp_path / "checkpoint")
    said = said | {"classifier__output_labels": ["LABEL_0"]}
    path = gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", **said)
    card = read_card(path)
    assert (card.embedder, card.completion, card.reranker.sigmoid) == (None, False, True)
    assert card.pooling == pooling
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.score(oracle, ids, 0) for ids in inputs])
    found = torch.stack(encoders.vectors(encoders.load(path), inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "said", "named"),
    [
        ("bert", {"pooling_type": 4}, r"pooling_type 4 \(rank\)"),
        ("nomic_bert", {"_tokenizer__ggml__model": "t5"}, "kind 't5'"),
        ("bert_classifier", {}, r"a classifier without cls\.weight"),
    ],
    ids=["pooling", "tokenizer", "classifier"],
)
def test_an_encoder_that_is_another_is_refused_by_its_key(tmp_path, name, said, named):
    encoders.write(name, tmp_path / "checkpoint")
    path = gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", **said)
    with pytest.raises(CortexError, match=named):
        read_card(path)


ASKED = "Judge.\n<Instruct>: Find it.\n<Query>: {query}\n<Document>: {document}\nNow:"
RANKS = {"qwen3.pooling_type": 4, "qwen3.classifier.output_labels": ["yes", "no"]}


def asked(path: Path, folder: Path, rows: torch.Tensor, **more: Any) -> Path:
    """A causal reranker as its converter writes it, which has these two rows of its head."""
    said = RANKS | {key.replace("__", "."): value for key, value in more.items()}
    return gguf_files.write(path, folder, more=said, dense={"cls.output.weight": rows})


@pytest.mark.parametrize("size", [1, 2])
def test_a_converted_model_that_is_asked_weighs_its_two_answers(tiny, tmp_path, monkeypatch, size):
    folder, oracle = tiny("qwen3_tied")
    torch.manual_seed(7)
    rows = torch.randn(2, oracle.config.hidden_size)
    said = {"qwen3__classifier__output_labels": ["no", "yes"], "tokenizer__chat_template__rerank": ASKED}
    path = asked(tmp_path / "model.gguf", folder, rows, **said)
    card = read_card(path)
    question = card.reranker.question
    assert (question.before, question.behind, question.instruction) == ("Judge.\n", "\nNow:", "Find it.")
    assert (card.completion, card.chat, card.embedding, card.config.writes) == (False, False, False, False)
    inputs = [[(7 * i + k) % 131 for i in range(20 + 9 * k)] for k in range(4)]
    submits = [Submit(k, array("I", ids).tobytes(), 1, pooling="score") for k, ids in enumerate(inputs)]
    ranks = Ranks(path, size, monkeypatch)
    for ids, answer in zip(inputs, Session(ranks, max_step_tokens=7).answer(submits), strict=True):
        with torch.inference_mode():
            no, yes = rows @ oracle.model(torch.tensor([ids])).last_hidden_state[0, -1]
        found = torch.frombuffer(bytearray(answer.embedding), dtype=torch.float32)
        torch.testing.assert_close(found, (yes - no)[None], rtol=1e-4, atol=1e-4)
    ranks.close()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"qwen3__classifier__output_labels": ["good", "bad"]}, r"qwen3\.classifier\.output_labels"),
        ({"tokenizer__chat_template__rerank": "{query}?"}, r"tokenizer\.chat_template\.rerank"),
    ],
)
def test_a_model_that_is_asked_otherwise_is_refused_by_its_key(tiny, tmp_path, said, named):
    path = asked(tmp_path / "model.gguf", tiny("qwen3_tied").folder, torch.zeros(2, 4), **said)
    with pytest.raises(CortexError, match=named):
        read_card(path)


@pytest.mark.parametrize(("kind", "pooling"), [(None, None), (0, None), (1, "mean"), (3, "last")])
def test_a_decoder_embeds_as_its_file_says(tiny, tmp_path, kind, pooling):
    more = {} if kind is None else {"qwen3.pooling_type": kind}
    path = gguf_files.write(tmp_path / "model.gguf", tiny("qwen3_untied_biased").folder, more=more)
    card = read_card(path)
    if pooling is None:
        assert (card.embedder, card.completion, card.config.writes) == (None, True, True)
        return
    assert (card.pooling, card.embedder.size) == (pooling, card.config.hidden_size)
    assert (card.completion, card.embedding, card.config.writes) == (False, True, False)
    assert "lm_head.weight" not in card.tensors  # which such a file has no use for


def test_a_decoder_that_makes_vectors_in_another_way_is_refused_by_it(tiny, tmp_path):
    more = {"qwen2.pooling_type": 2}
    path = gguf_files.write(tmp_path / "model.gguf", tiny("qwen2_tied").folder, more=more)
    with pytest.raises(CortexError, match=r"qwen2\.pooling_type 2 \(cls\) is not supported"):
        read_card(path)
