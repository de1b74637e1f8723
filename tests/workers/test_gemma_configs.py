"""`config.json` of Gemmas: what each layer is, and what is refused by its name."""

from __future__ import annotations

import pytest

from tests.workers.configs import refusal, written

GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 7,
    "sliding_window": 24,
    "query_pre_attn_scalar": 16,
}


def test_a_gemma_of_old_and_of_new_says_the_same(tmp_path):
    old = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 5e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    }
    types = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    new = written(tmp_path, **GEMMA, rope_parameters=ropes, layer_types=types, _sliding_window_pattern=6)
    assert written(tmp_path, **GEMMA, **old, sliding_window_pattern=6) == new
    assert written(tmp_path, **GEMMA, **old) == new
    assert [layer.kind for layer in new.layers] == ["window"] * 5 + ["full", "window"]
    assert (new.rope.rope_theta, new.rope.factor) == (1e6, 8.0)
    assert (new.window_rope.rope_theta, new.window_rope.rope_type) == (5e3, "default")
    assert new.context_limit == 8 * new.context_length


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": 50.0},
        {"rope_parameters": {"chunked_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"full_attention": 3}},
        {"query_pre_attn_scalar": 0},
        {"final_logit_softcapping": -1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_gemma_that_is_another_is_refused_by_the_key(tmp_path, changes):
    assert next(iter(changes)) in refusal(tmp_path, **GEMMA | changes)


GEMMA4 = {
    "architectures": ["Gemma4ForCausalLM"],
    "num_hidden_layers": 8,
    "head_dim": 16,
    "layer_types": 2 * (["sliding_attention"] * 3 + ["full_attention"]),
}


def test_a_gemma_4_has_layers_of_two_shapes_however_its_file_says_so(tmp_path):
    own = {"head_dim": 32, "num_key_value_heads": 1}
    new = written(tmp_path, **GEMMA4, attention_k_eq_v=True, per_layer_config={"03": own, "7": own})
    old = written(tmp_path, **GEMMA4, attention_k_eq_v=True, global_head_dim=32, num_global_key_value_heads=1)
    assert old == new
    shapes = [(layer.kind, layer.kv_heads, layer.head_dim) for layer in new.layers]
    assert shapes == 2 * ([("window", 2, 16)] * 3 + [("full", 1, 32)])
    assert new.values_of_keys == (3, 7)
    assert (new.rope.rope_type, new.rope.proportion, new.rotary_dim) == ("proportional", 0.25, 32)
    assert (new.window_rope.rope_type, new.window_rotary_dim) == ("default", 16)


def test_upper_layers_of_a_gemma_4_read_what_the_last_ones_of_their_kind_keep(tmp_path):
    config = written(tmp_path, **GEMMA4, num_kv_shared_layers=4, use_double_wide_mlp=True)
    assert [layer.keys_of for layer in config.layers] == [None] * 4 + [2, 2, 2, 3]
    assert config.inner_of == (config.intermediate_size,) * 4 + (2 * config.intermediate_size,) * 4
    # two shapes that keep, two that read, and the layers that these read
    assert config.unlike_layers() == [0, 2, 3, 4, 7]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_bidirectional_attention": "all"},
        {"num_kv_shared_layers": 6},
        {"per_layer_config": {"3": {"head_dim": 32}}},
        {"per_layer_config": {"9": {"head_dim": 32}}},
        {"per_layer_config": {"full_attention": {"head_dim": 32}}},
        {"per_layer_config": {"0": {"hidden_size": 32}}},
        {"num_experts": 4, "enable_moe_block": True},
        {"rope_parameters": {"chunked_attention": {"rope_type": "default"}}},
        {"num_global_key_value_heads": 3, "attention_k_eq_v": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_gemma_4_that_is_another_is_refused_by_the_key(tmp_path, changes):
    reason = refusal(tmp_path, **GEMMA4 | changes)
    assert any(word in reason for word in [next(iter(changes)), "top_k_experts", "layer 3 has 3 heads"])


GEMMA3N = {"architectures": ["Gemma3nForCausalLM"], "num_hidden_layers": 35}


def test_a_gemma_3n_has_what_files_leave_out(tmp_path):
    config = written(tmp_path, **GEMMA3N, query_pre_attn_scalar=256, altup_lr_multiplier=0.5)
    assert [layer.kind for layer in config.layers] == 7 * (["window"] * 4 + ["full"])
    assert [layer.keys_of for layer in config.layers] == [None] * 20 + 3 * ([18] * 4 + [19])
    assert config.sparsity == (0.95,) * 10 + (0.0,) * 25
    assert (config.rope.rope_theta, config.window_rope.rope_theta) == (1_000_000.0, 10_000.0)
    assert (config.logit_cap, config.attention_scale, config.altup.predictions) == (30.0, 1.0, 4)
    # sparse ones and others that keep, those that read, and the layer that these read
    assert config.unlike_layers() == [0, 10, 18, 20]
    sizes = [64] * 34 + [96]
    assert written(tmp_path, **GEMMA3N, intermediate_size=sizes).inner_of == tuple(sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_activation": "relu"},
        {"intermediate_size": [64]},
        {"activation_sparsity_pattern": [0.95]},
        {"activation_sparsity_pattern": [1.0] * 35},
        {"altup_num_inputs": 1},
        {"altup_active_idx": 4},
        {"num_kv_shared_layers": 31},
        {"layer_types": ["chunked_attention"] * 35},
        {"attn_logit_softcapping": 50.0},
        {"rope_parameters": {"chunked_attention": {"rope_type": "default"}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_gemma_3n_that_is_another_is_refused_by_the_key(tmp_path, changes):
    assert next(iter(changes)) in refusal(tmp_path, **GEMMA3N | changes)
