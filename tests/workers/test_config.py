"""`config.json`: both ways to write it are understood, and what is not done is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import Code, CortexError
from tests.workers.checkpoints import LLAMA3, SIZES, YARN
from workers.checkpoints.config import ModelConfig, read_config


def written(folder: Path, **changes: Any) -> ModelConfig:
    values = SIZES | {"architectures": ["LlamaForCausalLM"]} | changes
    content = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))
    return read_config(folder)


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(CortexError) as caught:
        written(folder, **changes)
    assert caught.value.code == Code.MODEL_LOAD_FAILED
    assert str(folder / "config.json") in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_flat_and_nested_rotary_settings_mean_the_same(tmp_path, rope):
    rope = rope | {"rope_theta": 500_000.0}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    nested = written(tmp_path, rope_parameters=rope)
    assert nested == written(tmp_path, rope_theta=500_000.0, rope_scaling=scaling)
    scaling["type"] = scaling.pop("rope_type")
    assert nested == written(tmp_path, rope_theta=500_000.0, rope_scaling=scaling)


def test_a_missing_original_context_is_the_whole_context(tmp_path):
    rope = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    config = written(tmp_path, rope_parameters=rope)
    assert config.rope.original_max_position_embeddings == SIZES["max_position_embeddings"]


def test_what_is_left_out_has_the_value_that_transformers_gives_it(tmp_path):
    config = written(tmp_path, head_dim=..., num_key_value_heads=..., attention_dropout=...)
    assert config.head_dim == SIZES["hidden_size"] // SIZES["num_attention_heads"]
    assert config.num_kv_heads == SIZES["num_attention_heads"]
    assert config.rope.rope_theta == 10_000.0
    assert not config.tied_head
    assert written(tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=...).head_dim == 128


REFUSED = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "gelu",
    "use_sliding_window": True,
    "layer_types": ["full_attention", "sliding_attention"],
    "partial_rotary_factor": 0.5,
    "quantization_config": {"quant_method": "fp8"},
    "num_key_value_heads": 3,
    "head_dim": 15,
    "num_hidden_layers": 0,
    "hidden_size": "48",
    "vocab_size": ...,
}


@pytest.mark.parametrize(("key", "value"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_done_is_refused_by_its_name(tmp_path, key, value):
    assert key in refusal(tmp_path, **{key: value})


ROPE_REFUSED = {
    "rope_type": {"rope_type": "longrope", "factor": 2.0},
    "factor": {"rope_type": "yarn"},
    "high_freq_factor": LLAMA3 | {"high_freq_factor": 1.0},
    "partial_rotary_factor": {"partial_rotary_factor": 0.25},
    "beta_fast": YARN | {"beta_fast": "fast"},
}


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize(("key", "rope"), ROPE_REFUSED.items(), ids=ROPE_REFUSED)
def test_rotary_settings_that_are_not_done_are_refused_by_their_name(tmp_path, key, rope, nested):
    place = "rope_parameters" if nested else "rope_scaling"
    message = refusal(tmp_path, **{place: rope})
    assert place in message
    assert key in message


@pytest.mark.parametrize("content", [None, "", "[]", '{"vocab_size": NaN}'])
def test_a_file_that_is_no_config_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CortexError, match=r"config\.json"):
        read_config(tmp_path)


def test_ranks_that_do_not_divide_the_model_are_refused_with_the_size(tmp_path):
    config = written(tmp_path, num_attention_heads=12, num_key_value_heads=4, intermediate_size=64)
    for world_size in (1, 2, 4):
        config.check_ranks(world_size)
    with pytest.raises(CortexError, match="num_attention_heads 12 does not divide over 8 ranks"):
        config.check_ranks(8)
    with pytest.raises(CortexError, match="intermediate_size 64 does not divide over 3 ranks"):
        config.check_ranks(3)
    wide = written(tmp_path, num_attention_heads=12, num_key_value_heads=4, intermediate_size=96)
    with pytest.raises(CortexError, match="num_key_value_heads 4"):
        wide.check_ranks(6)
