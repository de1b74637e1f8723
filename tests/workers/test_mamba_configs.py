"""`config.json` of models with Mamba-2: what each layer is, and what is refused by its name."""

from __future__ import annotations

from math import inf

import pytest
from transformers import NemotronHConfig

from tests.workers.configs import refusal, written
from workers.checkpoints.shares import WHOLE

GRANITE_4 = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 0,
    "shared_intermediate_size": 64,
    "mamba_n_heads": 8,
}


def test_a_granite_4_says_which_layers_keep_a_state_in_each_of_two_ways(tmp_path):
    words = [("mamba", "attention"), ("linear_attention", "full_attention")]
    for kinds in words:
        for key in ("layer_types", "layers_block_type"):
            others = GRANITE_4 | {"layer_types": None} | {key: [*kinds]}
            assert [layer.kind for layer in written(tmp_path, **others).layers] == ["state", "full"]
    both = {key: [*each] for key, each in zip(("layer_types", "layers_block_type"), words, strict=True)}
    assert written(tmp_path, **GRANITE_4 | both) == written(tmp_path, **GRANITE_4)
    assert "layer_types" in refusal(tmp_path, **GRANITE_4 | {"layer_types": None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["mamba", "mamba"]}, "no layer is attention"),
        ({"layer_types": ["mamba", "sliding_attention"]}, "layer_types is no list of mamba, attention"),
        ({"layer_types": ["mamba"]}, "for 2 layers"),
        ({"layer_types": None, "layers_block_type": ["mamba"]}, "layers_block_type is no list"),
        ({"layer_types": None, "layers_block_type": ["mamba"] * 2}, "layers_block_type: no layer"),
        ({"layers_block_type": ["attention", "mamba"]}, "layer_types and layers_block_type disagree"),
        ({"mamba_n_heads": 7}, "7 heads of Mamba-2 do not divide"),
        ({"mamba_d_head": 64}, "mamba_d_head 64 is not supported: 8 heads share"),
        ({"mamba_n_groups": 3}, "3 groups do not divide 8 heads"),
        ({"mamba_d_conv": 1}, "a convolution over 1 token"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"time_step_limit": [0.0]}, "time_step_limit"),
        ({"time_step_limit": [2.0, 1.0]}, "time_step_limit"),
        ({"time_step_limit": [0.0, {"__float__": "NaN"}]}, "time_step_limit"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"normalization_function": "layernorm"}, "normalization_function"),
        ({"mamba_rms_norm": True}, "mamba_rms_norm"),
    ],
)
def test_a_granite_4_of_another_shape_is_refused_by_name(tmp_path, changes, words):
    assert words in refusal(tmp_path, **GRANITE_4 | changes)


NEMOTRON_H = {
    "architectures": ["NemotronHForCausalLM"],
    "num_hidden_layers": 5,
    "hybrid_override_pattern": "M-*EM",
    "layer_norm_epsilon": 1e-5,
    "head_dim": ...,
    "mamba_num_heads": 8,
}


def test_a_nemotron_says_in_a_list_or_a_pattern_what_each_layer_is(tmp_path):
    kinds = ["state", "nothing", "full", "nothing", "state"]
    listed = [("mamba", "mlp", "attention", "moe", "mamba")]
    listed.append(("linear_attention", "mlp", "full_attention", "moe", "linear_attention"))
    for more in ({}, *({"hybrid_override_pattern": None, "layers_block_type": [*each]} for each in listed)):
        config = written(tmp_path, **NEMOTRON_H | more)
        assert [layer.kind for layer in config.layers] == kinds
        assert config.experts.layers == (3,)
        assert config.has_mlps
    said_twice = {"layers_block_type": [*listed[0]], "layer_types": [*listed[1]]}
    assert written(tmp_path, **NEMOTRON_H, **said_twice) == config
    assert not written(tmp_path, **NEMOTRON_H | {"hybrid_override_pattern": "ME*"}).has_mlps
    attending = written(tmp_path, **NEMOTRON_H | {"hybrid_override_pattern": "*-"})
    assert (attending.state, attending.experts) == (None, None)


def test_a_nemotron_says_under_either_of_two_names_how_large_its_heads_are(tmp_path):
    old, new = "attention_head_dim", "head_dim"
    for said in ({new: 64, old: None}, {new: None, old: 64}, {old: 64}, {new: 64}, {new: 64, old: 64}):
        assert written(tmp_path, **NEMOTRON_H | said).head_dim == 64
    for said in ({}, {new: None}, {old: None}, {new: None, old: None}):
        assert written(tmp_path, **NEMOTRON_H | said).head_dim == 128


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("mamba_n_groups", "n_groups", 4),
        ("mamba_d_conv", "conv_kernel", 3),
        ("mamba_conv_bias", "use_conv_bias", False),
        ("mamba_dt_limit", "time_step_limit", [0.1, 100.0]),
    ],
)
def test_an_old_name_of_a_nemotrons_key_holds_as_in_transformers(tmp_path, old, new, value):
    assert getattr(NemotronHConfig(**{old: value}), new) == value
    plain, expected = written(tmp_path, **NEMOTRON_H), written(tmp_path, **NEMOTRON_H, **{new: value})
    assert written(tmp_path, **NEMOTRON_H, **{old: value}) == expected != plain
    assert written(tmp_path, **NEMOTRON_H, **{old: None, new: value}) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern None"),
        ({"hybrid_override_pattern": "MX*"}, "hybrid_override_pattern MX*"),
        ({"hybrid_override_pattern": "M-M-"}, "no layer is attention"),
        ({"layers_block_type": ["mamba", "other"]}, "layers_block_type is no list"),
        ({"layer_types": ["mamba", "other"]}, "layer_types is no list"),
        ({"layer_types": ["mamba", "attention"]}, "layer_types and hybrid_override_pattern disagree"),
        (
            {"layer_types": ["mamba", "attention"], "layers_block_type": ["attention", "mamba"]},
            "layer_types and layers_block_type disagree",
        ),
        ({"n_groups": 3}, "3 groups do not divide 8 heads"),
        ({"moe_latent_size": 64}, "moe_latent_size"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"mlp_bias": True}, "mlp_bias is not supported where there are experts"),
        ({"mlp_hidden_act": "other"}, "mlp_hidden_act other"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"residual_in_fp32": True}, "residual_in_fp32"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is not layer_norm_epsilon"),
        ({"mamba_n_groups": 3}, "3 groups do not divide 8 heads"),
        ({"mamba_d_conv": 65}, "mamba_d_conv"),
        ({"mamba_dt_limit": [2.0, 1.0]}, "mamba_dt_limit [2.0, 1.0]"),
        ({"attention_head_dim": 64, "head_dim": 128}, "attention_head_dim is not head_dim, which is 128"),
        ({"sliding_window": 64}, "sliding_window 64"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9"),
        ({"scoring_func": "softmax"}, "scoring_func softmax"),
        ({"topk_method": "greedy"}, "topk_method greedy"),
        ({"logit_scale": 2.0}, "logit_scale"),
    ],
)
def test_a_nemotron_of_another_shape_is_refused_by_name(tmp_path, changes, words):
    assert words in refusal(tmp_path, **NEMOTRON_H | changes)


FALCON_H1 = {"architectures": ["FalconH1ForCausalLM"], "mamba_n_heads": 8}


def test_a_falcon_keeps_a_state_beside_keys_in_each_layer(tmp_path):
    config = written(tmp_path, **FALCON_H1, mamba_d_ssm=None, mamba_rms_norm=True)
    assert (config.mamba.inner, config.mamba.norm) == (96, "before_gates")
    assert [layer.kind for layer in config.layers] == ["full"] * 2
    assert config.layers[0].state_on_rank(WHOLE) == config.mamba.state_size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mamba_n_heads": 7}, "7 heads of Mamba-2 do not divide 1024"),
        ({"mamba_d_head": 64}, "mamba_d_head 64"),
        ({"mamba_n_groups": 3}, "3 groups"),
        ({"projectors_bias": True}, "mamba_proj_bias is not projectors_bias"),
        (
            {"projectors_bias": True, "mamba_proj_bias": True, "ssm_in_multiplier": 2.0},
            "ssm_in_multiplier 2.0",
        ),
        ({"attention_bias": True}, "attention_bias"),
        ({"attn_layer_indices": [0]}, "attn_layer_indices"),
        ({"mamba_use_mlp": False}, "mamba_use_mlp"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"ssm_multipliers": [1.0] * 4}, "ssm_multipliers"),
        ({"mlp_multipliers": [1.0, 0.0]}, "mlp_multipliers"),
        ({"key_multiplier": 0.0}, "key_multiplier"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
    ],
)
def test_a_falcon_of_another_shape_is_refused_by_name(tmp_path, changes, words):
    assert words in refusal(tmp_path, **FALCON_H1 | changes)


def test_a_step_has_a_limit_or_none_as_transformers_writes_it(tmp_path):
    for most in (inf, {"__float__": "Infinity"}):
        assert written(tmp_path, **GRANITE_4, time_step_limit=[0.0, most]).mamba.limits == (0.0, inf)
    assert written(tmp_path, **GRANITE_4, time_step_limit=[0.1, 100]).mamba.limits == (0.1, 100.0)
    assert written(tmp_path, **GRANITE_4, time_step_limit=None).mamba.limits == (0.0, inf)
