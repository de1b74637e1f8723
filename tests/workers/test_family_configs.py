"""`config.json` of one family or another: what it says in its own way, and what is refused by its name."""

from __future__ import annotations

import pytest

from tests.workers.configs import refusal, written
from tests.workers.tiny_models import YARN
from workers.checkpoints.config import notes
from workers.checkpoints.model_config import Temperature
from workers.layers.rotary import attention_factor


def test_a_qwen_of_dual_chunks_is_served_up_to_the_end_of_the_first_one(tmp_path):
    chunks = {"chunk_size": 900, "local_size": 100, "original_max_position_embeddings": 1024}
    qwen = {"architectures": ["Qwen2ForCausalLM"], "dual_chunk_attention_config": chunks}
    plain = written(tmp_path, **qwen | {"dual_chunk_attention_config": None, "max_position_embeddings": 800})
    assert written(tmp_path, **qwen) == plain
    assert "dual_chunk_attention_config" in notes(qwen)[0]
    chunks["original_max_position_embeddings"] = 700
    assert written(tmp_path, **qwen).context_length == written(tmp_path, **qwen).context_limit == 700
    for wrong in (
        {"local_size": 900},
        {"sparse_attention_enabled": True},
        {"attention_sinks": 4},
        {"chunk_size": None},
    ):
        [key] = wrong
        assert key in refusal(tmp_path, **qwen | {"dual_chunk_attention_config": chunks | wrong})


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("CohereForCausalLM", "use_qk_norm", True),
        ("Cohere2ForCausalLM", "rotary_pct", 0.5),
        ("Cohere2ForCausalLM", "order_of_interleaved_layers", "global_attn_first"),
        ("Exaone4ForCausalLM", "sliding_window_pattern", "LLLG"),
        ("Ernie4_5ForCausalLM", "use_rmsnorm", False),
        ("Ernie4_5_MoeForCausalLM", "use_bias", True),
        ("Ernie4_5_MoeForCausalLM", "moe_norm_min", 0.1),
        ("OlmoeForCausalLM", "clip_qkv", 8.0),
        ("OlmoeForCausalLM", "clip_qkv", 1.0),
        ("OlmoeForCausalLM", "num_experts_per_tok", 65),
        ("MiniMaxM2ForCausalLM", "attn_type_list", [1, 0]),
        ("MiniMaxM2ForCausalLM", "shared_intermediate_size", 32),
        ("ApertusForCausalLM", "hidden_act", "silu"),
        ("ArceeForCausalLM", "hidden_act", "xielu"),
        ("Starcoder2ForCausalLM", "norm_type", "rms_norm"),
        ("HunYuanDenseV1ForCausalLM", "use_cla", True),
        ("HunYuanMoEV1ForCausalLM", "moe_topk", 3),
        ("HunYuanMoEV1ForCausalLM", "num_experts_per_tok", 2),
        ("HunYuanMoEV1ForCausalLM", "moe_topk", [1, 0]),
        ("HunYuanMoEV1ForCausalLM", "num_shared_expert", [1, 2]),
        ("HunYuanMoEV1ForCausalLM", "moe_intermediate_size", 32),
        ("HunYuanMoEV1ForCausalLM", "moe_layer_num_skipped", 1),
        ("AfmoeForCausalLM", "route_norm", False),
        ("AfmoeForCausalLM", "score_func", "softmax"),
        ("AfmoeForCausalLM", "num_limited_groups", 2),
        ("AfmoeForCausalLM", "num_experts_per_tok", 65),
        ("GraniteSWAForCausalLM", "layer_rope_theta", [10_000.0]),
        ("GraniteSWAForCausalLM", "layer_rope_theta", [-1.0, 0]),
        ("GraniteMoeSWAForCausalLM", "layer_types", ["mamba", "full_attention"]),
        ("GraniteMoeForCausalLM", "layer_rope_theta", [10_000.0, 0]),
        ("FlexOlmoForCausalLM", "clip_qkv", 8.0),
        ("SolarOpenForCausalLM", "scoring_func", "other"),
        ("SolarOpenForCausalLM", "scoring_func", "softmax"),
        ("Dots1ForCausalLM", "topk_method", "greedy"),
        ("Glm4MoeForCausalLM", "topk_method", "group_limited_greedy"),
        ("Dots1ForCausalLM", "moe_layer_freq", 2),
        ("YoutuForCausalLM", "topk_method", "greedy"),
        ("MiMoForCausalLM", "attention_value_scale", 0.7),
        ("VaultGemmaForCausalLM", "use_bidirectional_attention", True),
        ("Lfm2ForCausalLM", "conv_bias", True),
        ("Lfm2ForCausalLM", "layer_types", ["conv", "conv"]),
        ("Lfm2ForCausalLM", "hidden_act", "gelu"),
        ("Gemma2ForCausalLM", "hidden_activation", "relu"),
        ("Gemma3ForCausalLM", "hidden_activation", "relu"),
        ("Gemma4ForCausalLM", "hidden_activation", "relu"),
        ("Lfm2MoeForCausalLM", "hidden_act", "gelu"),
        ("CwmForCausalLM", "rope_theta", 10_000.0),
        ("Olmo3ForCausalLM", "rope_theta", 10_000.0),
        ("LagunaForCausalLM", "rope_theta", 10_000.0),
        ("LagunaForCausalLM", "partial_rotary_factor", 1.0),
        ("LagunaForCausalLM", "rope_scaling", YARN),
    ],
)
def test_what_a_family_does_not_do_is_refused_by_its_key(tmp_path, architecture, key, value):
    written(tmp_path, architectures=[architecture])
    assert key in refusal(tmp_path, architectures=[architecture], **{key: value})


def test_a_rope_of_hunyuans_is_the_plain_one_of_a_larger_base(tmp_path):
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0}
    common = {"architectures": ["HunYuanDenseV1ForCausalLM"], "head_dim": ..., "attention_head_dim": 128}
    config = written(tmp_path, **common, rope_theta=10_000.0, rope_scaling=scaling)
    assert config.head_dim == 128
    assert config.rope.rope_theta == pytest.approx(11_158_839.925)
    assert not notes({"rope_scaling": scaling})
    assert notes({"rope_scaling": {"type": "dynamic", "factor": 2.0}})


@pytest.mark.parametrize("architecture", ["Cohere2ForCausalLM", "Cohere2MoeForCausalLM"])
def test_a_cohere_names_its_pattern_in_either_way(tmp_path, architecture):
    common = {"architectures": [architecture], "num_hidden_layers": 6, "sliding_window": 24}
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    by_types = written(tmp_path, **common, layer_types=types, _sliding_window_pattern=3)
    assert [layer.kind for layer in by_types.layers] == ["window", "window", "full"] * 2
    for key in ("_sliding_window_pattern", "sliding_window_pattern"):
        assert written(tmp_path, **common, **{key: 3}) == by_types


def test_an_exaone_names_its_layers_with_experts_in_either_way(tmp_path):
    common = {"architectures": ["ExaoneMoEForCausalLM"], "num_hidden_layers": 3, "sliding_window": 24}
    kinds, said = ["sparse", "dense", "sparse"], [True, False, True]
    config = written(tmp_path, **common, mlp_layer_types=kinds)
    assert config.experts.layers == (0, 2)
    assert written(tmp_path, **common, is_moe_layer=said) == config
    assert written(tmp_path, **common, is_moe_layer=said, mlp_layer_types=kinds) == config
    for other in ([False, True, True], [True, False]):
        assert "is_moe_layer" in refusal(tmp_path, **common, is_moe_layer=other, mlp_layer_types=kinds)
    assert "is_moe_layer" in refusal(tmp_path, **common, is_moe_layer=[True, False])


def test_a_qwen3_has_no_mlp_bias_whatever_its_file_says(tmp_path):
    assert not written(tmp_path, architectures=["Qwen3ForCausalLM"], mlp_bias=True).mlp_bias
    assert written(tmp_path, mlp_bias=True).mlp_bias


LLAMA4 = {"architectures": ["Llama4ForCausalLM"], "num_hidden_layers": 8, "max_position_embeddings": 65_536}


def test_a_llama_4_sees_chunks_where_it_has_positions_and_all_where_it_has_none(tmp_path):
    for said in ({}, {"no_rope_layers": []}, {"attn_temperature_tuning": 4}):  # as files say it
        config = written(tmp_path, **LLAMA4, **said)
        assert [layer.kind for layer in config.layers] == 2 * (["chunk"] * 3 + ["full"])
        assert {layer.window for layer in config.layers} == {8192, None}
        assert config.unrotated == (3, 7)
        assert config.temperature.unrotated
    whole = written(tmp_path, **LLAMA4, attention_chunk_size=1 << 20, attn_temperature_tuning=False)
    assert {layer.kind for layer in whole.layers} == {"full"}, "a chunk that is never full"
    assert whole.temperature is None


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_chunk_size": 100},
        {"attention_chunk_size": None},
        {"no_rope_layers": [1, 0]},
        {"layer_types": ["sliding_attention"] * 8},
        {"num_experts_per_tok": 17},
    ],
    ids=str,
)
def test_a_llama_4_that_is_another_is_refused_by_the_key(tmp_path, changes):
    assert next(iter(changes)) in refusal(tmp_path, **LLAMA4 | changes)


PHIMOE = {"architectures": ["PhimoeForCausalLM"]}


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def test_a_phi_with_experts_has_a_scale_for_short_contexts_and_one_for_long(tmp_path):
    said = LONG | {"original_max_position_embeddings": 64, "short_mscale": 1.1, "long_mscale": 1.3}
    for place in ("rope_scaling", "rope_parameters"):
        config = written(tmp_path, **PHIMOE, **{place: said})
        assert attention_factor(config.at_context(64).rope) == 1.1
        assert attention_factor(config.at_context(65).rope) == 1.3
    assert "_mscale is not understood" in refusal(
        tmp_path, architectures=["Phi3ForCausalLM"], rope_scaling=said
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts_per_tok": 3}, "num_experts_per_tok 3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type linear"),
        ({"rope_scaling": LONG | {"original_max_position_embeddings": 64}}, "short_mscale None"),
    ],
    ids=["experts", "rope", "scale"],
)
def test_a_phi_with_experts_that_is_another_is_refused_by_the_key(tmp_path, changes, named):
    assert named in refusal(tmp_path, **PHIMOE | changes)


def test_how_the_queries_of_a_ministral_3_grow_stands_among_its_rotary_settings(tmp_path):
    said = {"architectures": ["Ministral3ForCausalLM"]}
    assert written(tmp_path, **said).temperature == Temperature(16_384, 0.1)
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert written(tmp_path, **said, rope_parameters=yarn).temperature is None
    grows = yarn | {"llama_4_scaling_beta": 0.3, "max_position_embeddings": 512}
    assert written(tmp_path, **said, rope_parameters=grows).temperature == Temperature(128, 0.3)
    grows.pop("max_position_embeddings")
    assert "llama_4_scaling_beta" in refusal(tmp_path, rope_parameters=grows), "a Llama has none"
    assert "llama_4_scaling_beta" in refusal(
        tmp_path, **said, rope_parameters=yarn | {"llama_4_scaling_beta": "much"}
    )


def test_names_and_keys_that_stand_in_published_files_are_no_obstacle(tmp_path):
    coder = {"use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0}
    assert written(tmp_path, architectures=["Qwen3MoeForCausalLM"], **coder).experts.count == 128
    assert "use_qk_norm" in refusal(
        tmp_path, architectures=["Qwen3MoeForCausalLM"], **coder | {"use_qk_norm": False}
    )
    written(tmp_path, architectures=["PhiMoEForCausalLM"], intermediate_size=64)
    written(tmp_path, architectures=["Gemma2ForCausalLM"], sliding_window=24, sliding_window_size=24)
    micro = {"num_experts_per_tok": 0, "num_local_experts": 0, "shared_intermediate_size": 64}
    hybrid = {"architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": ["attention"] * 2}
    assert written(tmp_path, **hybrid, **micro).experts is None
    assert "num_experts_per_tok is 0" in refusal(tmp_path, **hybrid, **micro | {"num_local_experts": 8})
    three = {"architectures": ["InternLM3ForCausalLM"], "bias": False, "qkv_bias": False}
    written(tmp_path, **three, rope_scaling={"rope_type": "dynamic", "factor": 6.0})
    written(tmp_path, activation="swiglu")
    assert "activation" in refusal(tmp_path, activation="gelu")
    assert "qkv_bias True" in refusal(tmp_path, **three | {"qkv_bias": True})


def test_keys_of_trinity_mimo_youtu_and_hunyuan_are_no_obstacle(tmp_path):
    groups = {"n_group": 1, "topk_group": 1, "num_expert_groups": 1, "num_limited_groups": 1}
    trained = {"load_balance_coeff": 0.001, "use_grouped_mm": True}
    routed = {"route_norm": True, "score_func": "sigmoid", "num_experts": 128, "num_experts_per_tok": 8}
    said = groups | trained | routed | {"mup_enabled": True, "rope_scaling": None}
    trinity = written(tmp_path, architectures=["AfmoeForCausalLM"], num_hidden_layers=8, **said)
    assert trinity.unrotated == (3, 7)
    assert trinity.experts.layers == tuple(range(1, 8))
    said = {"num_nextn_predict_layers": 1, "attention_bias": True, "max_window_layers": 36}
    assert not written(tmp_path, architectures=["MiMoForCausalLM"], **said).output_bias
    said = {
        "embedding_initializer_range": 0.02,
        "mlp_bias": False,
        "qk_head_dim": 192,
        "tie_word_embeddings": ...,
    }
    youtu = written(tmp_path, architectures=["YoutuForCausalLM"], **said)
    assert (youtu.tied_head, youtu.experts) == (True, None)
    listed = {"moe_topk": [8, 8], "num_shared_expert": [1, 1], "moe_intermediate_size": [64, 64]}
    said = {"num_experts": 64, "norm_topk_prob": True, "use_mixed_mlp_moe": True, "vit_norm_type": "fused"}
    said |= {"moe_drop_tokens": False, "routed_scaling_factor": 1.0, "use_cla": False, "cla_share_factor": 2}
    hunyuan = written(
        tmp_path, architectures=["HunYuanMoEV1ForCausalLM"], intermediate_size=64, **said, **listed
    )
    assert (hunyuan.experts.chosen, hunyuan.experts.shared_size) == (8, 64)


def test_an_lfm_3_has_layers_of_three_kinds_and_two_ropes(tmp_path):
    said = {"architectures": ["Lfm3ForCausalLM"], "num_hidden_layers": 6, "tie_word_embeddings": ...}
    config = written(tmp_path, **said)
    assert [layer.kind for layer in config.layers] == ["state", "state", "full", "state", "window", "state"]
    assert (config.rope.rope_type, config.rope.rope_theta, config.rope.proportion) == (
        "proportional",
        1e6,
        0.5,
    )
    assert (config.window_rope.rope_type, config.window_rope.rope_theta) == ("default", 1e4)
    assert written(tmp_path, **said, norm_eps=1e-6, rms_norm_eps=0.5).norm_eps == 0.5
    for key, value in (
        ("conv_bias", True),
        ("hidden_act", "gelu"),
        ("layer_types", ["conv"] * 5 + ["sliding_attention"]),
        ("layer_types", ["conv"] * 5 + ["linear_attention"]),
        ("sliding_window", None),
        ("rope_parameters", {"conv": {}}),
        ("block_norm_bias", True),
    ):
        assert key in refusal(tmp_path, **said | {key: value})


OLMO = {"architectures": ["OlmoHybridForCausalLM"], "head_dim": ..., "num_hidden_layers": 4}


@pytest.mark.parametrize("rope", [..., None, {}, {"rope_type": None}, {"rope_theta": None}])
def test_an_olmo_hybrid_has_positions_only_where_it_says_a_base(tmp_path, rope):
    assert written(tmp_path, **OLMO, rope_parameters=rope).unrotated == (0, 1, 2, 3)
    for nested in ({"rope_theta": 5000.0}, {"rope_parameters": {"rope_theta": 5000.0}}):
        config = written(tmp_path, **OLMO | {"rope_parameters": rope} | nested)
        assert (config.unrotated, config.rope.rope_theta) == ((), 5000.0)
    assert "rope_theta" in refusal(tmp_path, **OLMO, rope_parameters={"rope_type": "linear", "factor": 2.0})


def test_a_granite_with_windows_has_a_base_for_those_and_one_for_others(tmp_path):
    said = {"architectures": ["GraniteSWAForCausalLM"], "num_hidden_layers": 5}
    plain = written(tmp_path, **said)
    assert [layer.window for layer in plain.layers] == [None, 128, 128, 128, None]
    assert (plain.window_rope, plain.unrotated, plain.sinks) == (None, (), True)
    some = written(tmp_path, **said, layer_rope_theta=[0, 500.0, 0, 500.0, 0])
    assert (some.rope.rope_theta, some.window_rope, some.unrotated) == (500.0, None, (0, 2, 4))
    both = written(tmp_path, **said, layer_rope_theta=[900.0, 500.0, 500.0, 500.0, 0])
    assert (both.rope.rope_theta, both.window_rope.rope_theta) == (900.0, 500.0)
    unlike = [900.0, 500.0, 500.0, 400.0, 0]
    assert "layer_rope_theta" in refusal(tmp_path, **said, layer_rope_theta=unlike)


def test_what_one_family_understands_another_does_not(tmp_path):
    multiplied = {"embedding_multiplier": 12.0}
    config = written(tmp_path, architectures=["GraniteForCausalLM"], **multiplied)
    assert (config.embedding_scale, config.attention_scale) == (12.0, 1.0)
    assert "embedding_multiplier" in refusal(tmp_path, **multiplied)


def test_layers_without_positions_are_every_fourth_or_those_that_are_listed(tmp_path):
    smol = {"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 8}
    assert written(tmp_path, **smol).unrotated == (3, 7)
    assert written(tmp_path, **smol, no_rope_layers=[0, 1, 1, 1] * 2).unrotated == (0, 4)
    assert "no_rope_layers" in refusal(tmp_path, **smol, no_rope_layers=[0, 1])
