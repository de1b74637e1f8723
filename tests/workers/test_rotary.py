"""Rotary frequencies are those of transformers to the last bit, whatever extends the context."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workers.checkpoints.rope import Rope
from workers.layers.rotary import Rotary

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "llama3 at once": LLAMA3 | {"high_freq_factor": 1.0},
    "llama3 narrow": LLAMA3 | {"factor": 32.0, "high_freq_factor": 1.5},
    "yarn": YARN,
    "yarn exact": YARN | {"truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn no longer": YARN | {"factor": 1.0},
}


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("settings", ROPES.values(), ids=ROPES)
def test_angles_are_those_of_transformers_to_the_bit(settings, head_dim, theta):
    settings = settings | {"rope_theta": theta}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131_072,
        rope_parameters=dict(settings),
    )
    oracle = LlamaRotaryEmbedding(config)
    rotary = Rotary(Rope(**settings), head_dim, torch.device("cpu"))
    assert torch.equal(rotary.frequencies, torch.cat((-oracle.inv_freq, oracle.inv_freq)))
    positions = torch.tensor([0, 1, 31, 4_095, 40_000, 131_071])
    cos, sin = rotary(positions)
    wanted_cos, wanted_sin = oracle(torch.zeros(1), positions[None])
    half = head_dim // 2
    assert torch.equal(cos[:, 0], wanted_cos[0])
    assert torch.equal(sin[:, 0, half:], wanted_sin[0, :, half:])
    assert torch.equal(sin[:, 0, :half], -wanted_sin[0, :, :half])


@pytest.mark.parametrize("interleaved", [False, True])
def test_what_is_seen_turns_with_its_rows_and_columns_and_kernels_read_that_as_it_stands(interleaved):
    """Text has the same three positions; angles lie side by side, as kernels take them."""
    plain, seeing = (
        Rotary(Rope(), 16, torch.device("cpu"), interleaved, sections) for sections in (None, (4, 2, 2))
    )
    positions = torch.tensor([0, 5, 900])
    assert all(map(torch.equal, seeing(positions.expand(3, -1)), plain(positions)))
    apart = seeing(torch.stack((positions, positions + 1, positions + 2)))
    each = [plain(positions + axis) for axis in range(3)]
    turns = [0, 1, 2, 0, 1, 2, 0, 0]  # which of the three turns a pair
    of_both = [axis for axis in turns for _ in range(2)] if interleaved else turns * 2
    for found, angles in zip(apart, zip(*each, strict=True), strict=True):
        assert found.is_contiguous()
        for dimension, axis in enumerate(of_both):
            assert torch.equal(found[..., dimension], angles[axis][..., dimension])
