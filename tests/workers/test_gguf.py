"""GGUF files: what llama.cpp's converters make of a checkpoint is that checkpoint again."""

from __future__ import annotations

import msgspec
import pytest
import torch

import workers.weights.loader
from tests.workers import gguf_files
from workers.checkpoints.card import ModelCard, read_card
from workers.layers.rotary import frequencies
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights.loader import Shard, Slice, WeightFiles

SAME = [
    "llama_untied_linear",
    "llama_tied_llama3",
    "llama_yarn_biased",
    "llama_one_key_head_sharded",
    "qwen2_tied",
    "qwen3_untied_biased",
    "qwen3_yarn",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "gemma3_linear_capped",
    "phi3_partial_tied",
    "granite_biased",
    "smollm3",
    "olmo2_biased",
    "olmo3",
    "glm4",
]


def loaded(card: ModelCard, rank: int = 0, size: int = 1) -> list[Slice]:
    """Every tensor of a rank, read."""
    model = MODELS[card.family](card.config, RankGroup(rank, size), torch.float32, card.formats(size))
    pieces = [piece for part in model.parts() for piece in part.pieces]
    WeightFiles(card).load([Shard(pieces)], lambda fraction: None)
    return pieces


@pytest.mark.parametrize("name", SAME)
def test_a_converted_checkpoint_is_the_same_model(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)  # tiny tensors have several blocks too
    folder = tiny(name).folder
    ours, theirs = read_card(gguf_files.write(tmp_path / "model.gguf", folder)), read_card(folder)
    assert (ours.family, ours.architecture) == (theirs.family, theirs.architecture)
    for rope in ("rope", "window_rope"):
        left, right = getattr(ours.config, rope), getattr(theirs.config, rope)
        if left is not None and right is not None:
            turning = ours.config.rotary_dim
            torch.testing.assert_close(frequencies(left, turning), frequencies(right, turning))
    unlike = {"window_rope"}  # where it is the same as the other
    unlike |= {"rope"} if "llama3" in name else set()  # by its factors, which were compared
    unlike |= {"attention_scale"} if "gemma" in name else set()  # which follows from the sizes
    left, right = msgspec.to_builtins(ours.config), msgspec.to_builtins(theirs.config)
    assert {key for key in left if left[key] != right[key]} <= unlike
    for size in (1, 2):
        for rank in range(size):
            for mine, other in zip(loaded(ours, rank, size), loaded(theirs, rank, size), strict=True):
                assert (mine.name, mine.row, mine.column) == (other.name, other.row, other.column)
                torch.testing.assert_close(mine.into, other.into, rtol=0, atol=2e-7, msg=mine.name)
