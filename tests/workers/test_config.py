"""`config.json`: both ways to write it are understood, and what is not done is refused by its name."""

from __future__ import annotations

import pytest

from ipc.errors import CortexError
from tests.workers.configs import refusal, written
from tests.workers.tiny_models import LLAMA3, SIZES, YARN
from workers.checkpoints.config import notes
from workers.checkpoints.model_config import Temperature
from workers.checkpoints.reading import read_card
from workers.layers.rotary import attention_factor


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_flat_and_nested_rotary_settings_mean_the_same(tmp_path, rope):
    rope = rope | {"rope_theta": 500_000.0}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    nested = written(tmp_path, rope_parameters=rope)
    assert nested == written(tmp_path, rope_theta=500_000.0, rope_scaling=scaling)
    scaling["type"] = scaling.pop("rope_type")
    assert nested == written(tmp_path, rope_theta=500_000.0, rope_scaling=scaling)


def test_an_original_context_that_is_said_twice_is_the_same(tmp_path):
    said = {"original_max_position_embeddings": 128, "rope_parameters": YARN}
    assert written(tmp_path, **said).rope.original_max_position_embeddings == 128
    assert "leave one of them out" in refusal(tmp_path, **said | {"original_max_position_embeddings": 64})


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
    "hidden_act": "relu",
    "sliding_window": 0,
    "layer_types": ["full_attention", "chunked_attention"],
    "partial_rotary_factor": 0.5,
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
    "rope_type": {"rope_type": "axial", "factor": 2.0},
    "is no name": {"rope_type": ["yarn"], "factor": 2.0},
    "original_max_position_embeddings": {"rope_type": "longrope", "original_max_position_embeddings": "8"},
    "long_factor": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7},
    "short_factor": {"rope_type": "longrope", "short_factor": [0.0] * 8, "long_factor": [1.0] * 8},
    "factor": {"rope_type": "yarn"},
    "high_freq_factor": LLAMA3 | {"high_freq_factor": 0.5},
    "partial_rotary_factor": {"partial_rotary_factor": 0.25},
    "beta_fast": YARN | {"beta_fast": "fast"},
    "beta_fast -1": YARN | {"beta_fast": -1.0},
    "beta_slow -1": YARN | {"beta_slow": -1.0},
    "original_max_position_embeddings is 1": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [1.0] * 8,
        "original_max_position_embeddings": 1,
    },
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
        read_card(tmp_path)


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


# --- windows ----------------------------------------------------------------------------------------------

WINDOWED = {"num_hidden_layers": 4, "sliding_window": 32}
BY_LAYER = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "max_window_layers": 3}, [None, None, None, 32]),
        ("Qwen3ForCausalLM", {"use_sliding_window": True}, [None] * 4),  # from layer 28 on
        ("Qwen3ForCausalLM", {"use_sliding_window": False, "max_window_layers": 0}, [None] * 4),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "layer_types": BY_LAYER}, [32, None, 32, None]),
        ("LlamaForCausalLM", {}, [None] * 4),
        ("LlamaForCausalLM", {"use_sliding_window": True}, [32] * 4),
        ("LlamaForCausalLM", {"layer_types": BY_LAYER}, [32, None, 32, None]),
        ("MistralForCausalLM", {}, [32] * 4),
        ("MistralForCausalLM", {"sliding_window": None}, [None] * 4),
        ("MistralForCausalLM", {"sliding_window": 4096}, [None] * 4),  # as long as the context
    ],
)
def test_each_layer_says_how_far_it_sees(tmp_path, architecture, changes, windows):
    config = written(tmp_path, architectures=[architecture], **WINDOWED | changes)
    assert [layer.window for layer in config.layers] == windows
    assert [layer.kind for layer in config.layers] == ["window" if window else "full" for window in windows]
    assert {(layer.kv_heads, layer.head_dim) for layer in config.layers} == {(2, 16)}


def test_a_mistral_that_says_nothing_of_its_window_has_one_of_4096(tmp_path):
    config = written(tmp_path, architectures=["MistralForCausalLM"], max_position_embeddings=32_768)
    assert {layer.window for layer in config.layers} == {4096}


def test_layer_types_that_do_not_fit_the_layers_are_refused(tmp_path):
    assert "layer_types has 4 entries" in refusal(tmp_path, layer_types=BY_LAYER, sliding_window=32)
    assert "sliding_window is missing" in refusal(tmp_path, layer_types=BY_LAYER, num_hidden_layers=4)


# --- context ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "context", "limit"),
    [
        ({"rope_type": "default"}, 4096, 4096),
        (YARN | {"original_max_position_embeddings": 4096}, 16_384, 16_384),
        (YARN | {"original_max_position_embeddings": 512}, 4096, 4096),  # the file has the long one
        ({"rope_type": "linear", "factor": 4.0}, 4096, 16_384),  # which of both it has, nobody knows
        ({"rope_type": "dynamic", "factor": 4.0}, 4096, 4096),
        (LLAMA3, 4096, 4096),
    ],
)
def test_a_stretched_rope_stretches_the_context(tmp_path, rope, context, limit):
    config = written(tmp_path, rope_parameters=rope)
    assert (config.context_length, config.context_limit) == (context, limit)


# --- what is not understood -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("logits_scaling", 8),
        ("use_qk_norm", True),
        ("num_experts", 8),
        ("no_rope_layers", [0, 1]),
        ("attention_multiplier", 0.5),
    ],
)
def test_a_key_that_may_change_numbers_and_is_not_understood_is_refused(tmp_path, key, value):
    assert f"{key} {value} is not understood" in refusal(tmp_path, **{key: value})
    for neutral in (None, False, 0, 1.0, []):
        written(tmp_path, **{key: neutral})


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


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_a_factor_that_a_rope_in_parts_would_leave_out_is_refused(tmp_path, kind):
    common = {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 10_000.0}
    turning = {kind: "mrope", "mrope_section": [4, 2, 2]}
    plain = written(tmp_path, **common, rope_scaling=turning)
    assert written(tmp_path, **common, rope_scaling=turning | {"factor": 1.0}) == plain
    said = refusal(tmp_path, **common, rope_scaling=turning | {"factor": 4.0})
    assert "rope_scaling: factor 4.0 is not supported of the type mrope" in said


def test_a_size_that_cannot_be_meant_is_refused_before_it_costs_anything(tmp_path):
    assert "num_hidden_layers" in refusal(tmp_path, num_hidden_layers=1_000_000_000)
    assert "vocab_size" in refusal(tmp_path, vocab_size=1 << 40)


def test_keys_that_change_no_numbers_are_no_obstacle(tmp_path):
    written(tmp_path, transformers_version="5.0.0", unsloth_fixed=True, my_notes="scaling", eos_token_id=2)


def test_swish_is_silu_and_gelu_has_two_forms(tmp_path):
    names = ("silu", "swish", "gelu", "gelu_pytorch_tanh")
    assert [written(tmp_path, hidden_act=name).activation for name in names] == [
        "silu",
        "silu",
        "gelu",
        "gelu_tanh",
    ]


def test_a_qwen3_has_no_mlp_bias_whatever_its_file_says(tmp_path):
    assert not written(tmp_path, architectures=["Qwen3ForCausalLM"], mlp_bias=True).mlp_bias
    assert written(tmp_path, mlp_bias=True).mlp_bias


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


def test_a_yarn_of_deepseek_s_multiplies_what_others_have(tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope = written(tmp_path, rope_scaling=yarn | {"attn_factor": 0.8782488562869419}).rope
    assert attention_factor(rope) == pytest.approx(1.0)
    for more in ({"attn_factor": "much"}, {"attn_factor": 0.9, "mscale": 1.0}):
        assert "attn_factor" in refusal(tmp_path, rope_scaling=yarn | more)


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
