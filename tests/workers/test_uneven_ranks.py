"""Ranks that share a model unevenly, as unlike cards do, answer as one does, and hold what was planned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers import gguf_files, tiny_models
from tests.workers.cards import assert_asks_for_what_is_declared
from tests.workers.checkpoints import write
from tests.workers.engines import make_runner, request, serve
from tests.workers.oracle import fill, greedy
from tests.workers.thread_ranks import Ranks
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Share, Split

SMALL = {"max_sequences": 8, "max_step_tokens": 64, "context_length": 256, "kv_pages": 60}
# One of each kind of mathematics that is shared: heads, biases, windows, sinks, norms over all heads, latent
# vectors, states, whole experts and parts of them, one key head for all.
VARIANTS = (
    "qwen3_tied",
    "llama_yarn_biased",
    "llama_one_key_head_sharded",
    "llama_flat_llama3",
    "llama4",
    "phi3",
    "qwen3_moe",
    "gemma3n_shared_sparse",
    "gemma4",
    "granitemoe_swa",
    "nemotron_h_biased",
    "falcon_h1_normed",
    "olmo2_biased",
    "deepseek_v3",
    "glm4_moe_whole",
    "gpt_oss",
    "gpt_oss_whole",
    "cohere2",
    "minimax_m2",
    "lfm2",
    "lfm3",
    "qwen3_next",
    "qwen3_5",
    "muse_glimmer",
    "apertus",
    "mistral4",
)
COUNTS = [(1, 3), (3, 1), (1, 2, 1)]


@pytest.mark.parametrize(("name", "counts"), [(name, COUNTS[i % 3]) for i, name in enumerate(VARIANTS)])
def test_uneven_ranks_answer_as_transformers_does(tmp_path, monkeypatch, name, counts):
    for sizes in (tiny_models.SIZES, tiny_models.NO_HEAD_DIM):
        monkeypatch.setitem(sizes, "num_key_value_heads", 4)
    monkeypatch.setitem(tiny_models.HYBRID, "num_key_value_heads", 4)
    monkeypatch.setitem(tiny_models.HYBRID, "linear_num_key_heads", 4)
    oracle, split = write(name, tmp_path), Split(counts)
    card = read_card(tmp_path)
    assert_asks_for_what_is_declared(card, name, split)
    vocabulary = oracle.config.get_text_config().vocab_size
    prompts = [[(i * k + k) % vocabulary for i in range(length)] for k, length in ((3, 100), (5, 33), (7, 1))]
    requests = [request(number, prompt, 6) for number, prompt in enumerate(prompts)]
    ranks = Ranks(tmp_path, split.ranks, monkeypatch, parts=list(counts), **SMALL)
    for prompt, output in zip(prompts, serve(ranks, requests, **SMALL), strict=True):
        assert output == greedy(oracle, prompt, output)
    ranks.close()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5))
def test_what_ranks_have_together_is_all_of_it_and_nothing_twice(counts, times):
    split = Split(tuple(counts))
    total = times * split.parts
    shares = [*split.shares()]
    assert [row for share in shares for row in share.range(total)] == [*range(total)]
    assert [share.of(total) for share in shares] == [len(share.range(total)) for share in shares]
    assert [head for share in shares for head in share.kv_range(total)] == [*range(total)]
    assert all(share.kv_range(1) == range(1) for share in shares)


def test_a_share_of_what_does_not_divide_is_padded_part_by_part():
    assert [share.of(131) for share in Split((1, 3)).shares()] == [33, 99]
    assert Split.evenly(4).share(1) == Share(1, 1, 4)


@pytest.mark.parametrize("quantization", ["q8", "q4", "int8", "fp8"])
def test_weights_in_blocks_are_shared_so_too(tmp_path, monkeypatch, quantization):
    torch.manual_seed(7)
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_attention_heads": 8, "head_dim": 128}
    oracle, split = tiny_models.qwen3(**sizes, num_key_value_heads=4, vocab_size=132), Split((3, 1))
    fill(oracle, std=0.2)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    card = read_card(tmp_path)
    alone = make_runner(tmp_path, quantization=quantization, **SMALL)
    alone.load(lambda fraction, message: None)
    ranks = Ranks(tmp_path, 2, monkeypatch, parts=[*split.counts], quantization=quantization, **SMALL)
    assert card.formats(split, quantization) == card.formats(ALONE, quantization)
    held = [rank.model.nbytes for rank in ranks.ranks]
    assert held == card.bytes_per_rank(split, "float32", quantization)
    requests = [request(number, [(i * 7 + number) % 131 for i in range(40)], 4) for number in range(3)]
    mine, theirs = (serve(engine, requests, **SMALL) for engine in (ranks, alone))
    assert mine == theirs
    ranks.close()
    alone.close()


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_so_are_those_of_gguf_files_whose_rows_and_columns_have_another_order(tmp_path, monkeypatch, name):
    torch.manual_seed(3)
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 132}
    states = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_value_head_dim": 32}
    wide |= states if name == "qwen3_5" else {}
    oracle, split = getattr(tiny_models, name)(**wide, num_key_value_heads=4), Split((1, 2, 1))
    fill(oracle)
    oracle.save_pretrained(tmp_path / "checkpoint")
    path = gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0")
    alone = make_runner(path, **SMALL)
    alone.load(lambda fraction, message: None)
    ranks = Ranks(path, 3, monkeypatch, parts=split.counts, **SMALL)
    requests = [request(number, [(i * 7 + number) % 131 for i in range(40)], 6) for number in range(3)]
    mine, theirs = (serve(engine, requests, **SMALL) for engine in (ranks, alone))
    assert mine == theirs
    ranks.close()
    alone.close()
