"""`config.json`: both ways to write it are understood, and what is not done is refused by its name."""

from __future__ import annotations

import pytest

from ipc.errors import CortexError
from tests.workers.configs import refusal, written
from tests.workers.tiny_models import LLAMA3, SIZES, YARN
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


def test_swish_is_silu_and_gelu_has_two_forms(tmp_path):
    names = ("silu", "swish", "gelu", "gelu_pytorch_tanh")
    assert [written(tmp_path, hidden_act=name).activation for name in names] == [
        "silu",
        "silu",
        "gelu",
        "gelu_tanh",
    ]


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


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_a_factor_that_a_rope_in_parts_would_leave_out_is_refused(tmp_path, kind):
    common = {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 10_000.0}
    turning = {kind: "mrope", "mrope_section": [4, 2, 2]}
    plain = written(tmp_path, **common, rope_scaling=turning)
    assert written(tmp_path, **common, rope_scaling=turning | {"factor": 1.0}) == plain
    said = refusal(tmp_path, **common, rope_scaling=turning | {"factor": 4.0})
    assert "rope_scaling: factor 4.0 is not supported of the type mrope" in said


def test_a_yarn_of_deepseek_s_multiplies_what_others_have(tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope = written(tmp_path, rope_scaling=yarn | {"attn_factor": 0.8782488562869419}).rope
    assert attention_factor(rope) == pytest.approx(1.0)
    for more in ({"attn_factor": "much"}, {"attn_factor": 0.9, "mscale": 1.0}):
        assert "attn_factor" in refusal(tmp_path, rope_scaling=yarn | more)


@pytest.mark.parametrize("content", [None, "", "[]", '{"vocab_size": NaN}'])
def test_a_file_that_is_no_config_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CortexError, match=r"config\.json"):
        read_card(tmp_path)


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


def test_a_size_that_cannot_be_meant_is_refused_before_it_costs_anything(tmp_path):
    assert "num_hidden_layers" in refusal(tmp_path, num_hidden_layers=1_000_000_000)
    assert "vocab_size" in refusal(tmp_path, vocab_size=1 << 40)


def test_keys_that_change_no_numbers_are_no_obstacle(tmp_path):
    written(tmp_path, transformers_version="5.0.0", unsloth_fixed=True, my_notes="scaling", eos_token_id=2)
