"""A key of a GGUF file is followed, or the file is refused by its name."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from ipc.errors import CortexError
from tests.workers import gguf_files
from workers.checkpoints.gguf import architectures, config, unread
from workers.checkpoints.gguf.header import Gguf, read_header
from workers.checkpoints.reading import read_card
from workers.layers.rotary import attention_factor


@pytest.mark.parametrize("key", ["attn_factor", "yarn_attn_factor"])
def test_a_yarn_of_deepseek_s_multiplies_what_others_have_in_a_file_too(tiny, tmp_path, key):
    folder = tiny("qwen3_yarn").folder
    rope = read_card(folder).config.rope
    plain = 0.1 * math.log(rope.factor) + 1.0
    more = {f"qwen3.rope.scaling.{key}": 1 / plain}
    card = read_card(gguf_files.write(tmp_path / "model.gguf", folder, more=more))
    assert attention_factor(card.config.rope) == pytest.approx(1.0)


def keys_of_llama_cpp() -> set[str]:
    """What may stand in a file below its architecture's name."""
    known, classes = set(), [gguf.Keys]
    for each in classes:
        for name, value in vars(each).items():
            if isinstance(value, type) and name != "__class__":
                classes.append(value)
            elif isinstance(value, str) and value.startswith("{arch}."):
                known |= {
                    value.removeprefix("{arch}.").format(dense=dense) for dense in ("dense_2", "dense_3")
                }
    return known


@pytest.mark.parametrize("name", ["llama_untied_linear", "qwen3_moe", "gemma3", "phi3_partial_tied"])
def test_a_key_that_changes_numbers_is_followed_or_refused(tiny, tmp_path, name):
    file = read_header(gguf_files.write(tmp_path / "model.gguf", tiny(name).folder))
    usual = outcome(file)
    idle = {"attention.layer_norm_epsilon"}  # beside another, which is read
    if "num_experts" not in usual:
        idle |= {key for key in keys_of_llama_cpp() if key.startswith("expert")}
    if not usual["sliding_window"]:
        idle.add("attention.sliding_window_pattern")
    for key in sorted(keys_of_llama_cpp() - unread.HARMLESS - idle):
        full = f"{file.architecture}.{key}"
        if full not in file.metadata:
            found = outcome(replace(file, metadata=file.metadata | {full: 77}))
            assert found != usual if isinstance(found, dict) else key in found, key


def outcome(file: Gguf) -> dict[str, Any] | str:
    """What its config would be, or why it is refused."""
    try:
        return config.config_json(file, architectures.find(file))
    except CortexError as error:
        return error.message


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama_untied_linear", "llama.attention.scale", 0.5),
        ("llama_untied_linear", "llama.pooling_type", 77),
        ("llama_untied_linear", "llama.rope.global.freq_base", 5e5),
        ("llama_tied_llama3", "llama.rope.scaling.factor", 8.0),
        ("qwen3_moe", "qwen3moe.expert_gating_func", 2),
        ("qwen3_moe", "qwen3moe.expert_group_count", 4),
        ("glm4_moe", "glm4moe.expert_gating_func", 1),
        ("glm4", "glm4.rope.dimension_sections", [8, 12, 12, 0]),
        ("youtu", "deepseek2.leading_dense_block_count", 1),
        ("granite_biased", "granite.rope.scaling.finetuned", False),
        ("granitemoe", "granitemoe.rope.scaling.finetuned", False),
        ("granitemoe_swa", "granite_swa.expert_shared_feed_forward_length", 40),
    ],
)
def test_a_model_that_is_another_than_its_family_is_refused_by_its_key(tiny, tmp_path, name, key, value):
    path = gguf_files.write(tmp_path / "model.gguf", tiny(name).folder, more={key: value})
    with pytest.raises(CortexError, match=re.escape(f"{key} {value}")):
        read_card(path)


def test_keys_that_say_what_the_model_has_anyway_are_no_reason_to_refuse_it(tiny, tmp_path):
    folder = tiny("llama_untied_linear").folder
    plain = read_card(gguf_files.write(tmp_path / "plain.gguf", folder))
    more = {
        "attention.scale": plain.config.head_dim**-0.5,
        "rope.freq_base_swa": 10_000.0,
        "expert_gating_func": 2,  # of none
        "vision.attention.head_count": 16,
        "attention.sliding_window": 1 << 20,
        "attention.sliding_window_pattern": 4,
        "swiglu_clamp_exp": [0.0, 0.0],
        "general_remark": "attention",
    }
    more = {f"llama.{key}": value for key, value in more.items()}
    card = read_card(gguf_files.write(tmp_path / "model.gguf", folder, more=more))
    assert card.config == plain.config


@pytest.mark.parametrize("value", [[1.5, 0.0], 1.64, ["x"] * 6, [9.0] * 6])
def test_gates_of_a_gemma_3n_are_closed_as_its_file_says_or_it_is_refused(tiny, tmp_path, value):
    folder, key = tiny("gemma3n_shared_sparse").folder, "gemma3n.activation_sparsity_scale"
    with pytest.raises(CortexError, match="activation_sparsity"):
        read_card(gguf_files.write(tmp_path / "model.gguf", folder, more={key: value}))
    more = {key: [1.5] * 6, "gemma3n.attention.shared_kv_layers": 0}
    with pytest.raises(CortexError, match="k_proj"):  # which layers that share have not
        read_card(gguf_files.write(tmp_path / "other.gguf", folder, more=more))


def test_a_factor_of_positions_is_linear_where_no_type_stands_there(tiny, tmp_path):
    folder = tiny("qwen2_tied").folder
    more = {"qwen2.rope.scaling.factor": 4.0}
    rope = read_card(gguf_files.write(tmp_path / "linear.gguf", folder, more=more)).config.rope
    assert (rope.rope_type, rope.factor) == ("linear", 4.0)
    none = more | {"qwen2.rope.scaling.type": "none"}
    rope = read_card(gguf_files.write(tmp_path / "none.gguf", folder, more=none)).config.rope
    assert rope.rope_type == "default"


def test_a_granite_with_windows_says_in_which_layers_positions_turn(tiny, tmp_path):
    more = {"granite_swa.attention.rope_pattern": [False, True, True], "granite_swa.rope.freq_base": 500.0}
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tiny("granite_swa").folder, more=more))
    assert (card.config.unrotated, card.config.rope.rope_theta) == ((0,), 500.0)


def test_a_ministral_3_says_how_its_positions_and_its_queries_grow(tiny, tmp_path):
    more = {"mistral3.rope.scaling.yarn_log_multiplier": 1.0}  # as it is published
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tiny("ministral3").folder, more=more))
    assert (card.config.rope.mscale, card.config.rope.mscale_all_dim) == (1.0, 1.0)
    assert card.config.temperature.weight == 0.5


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q_norm.weight", "blk.3.attn_q_norm.weight", "blk.2.attn_k_norm.weight"]
)
def test_norms_of_a_muse_that_have_weights_are_refused_by_their_name(tiny, tmp_path, name):
    path = gguf_files.write(tmp_path / "model.gguf", tiny("muse_glimmer").folder)
    with path.open("r+b") as file:
        file.seek(read_header(path).tensors[name].offset + 8)
        file.write(struct.pack("<f", 2.0))
    with pytest.raises(CortexError, match=re.escape(f"other numbers in '{name}'")):
        read_card(path)


def test_lists_of_layers_have_numbers_of_a_head_behind_them_too(tiny, tmp_path, monkeypatch):
    close = gguf_files.Writer.close

    def and_a_head(writer: gguf_files.Writer) -> Path:
        writer.tensor("blk.5.nextn.eh_proj.weight", torch.ones(48, 96))
        writer.tensor("blk.5.attn_q.weight", torch.ones(64, 48))
        return close(writer)

    monkeypatch.setattr(gguf_files.Writer, "close", and_a_head)
    more = {"block_count": 6, "nextn_predict_layers": 1}
    more |= {"attention.head_count_kv": [0, 0, 2, 0, 0, 2], "feed_forward_length": [0, 32, 0, 32, 0, 32]}
    folder = tiny("nemotron_h_moe").folder
    more = {f"nemotron_h_moe.{key}": value for key, value in more.items()}
    card = read_card(gguf_files.write(tmp_path / "model.gguf", folder, more=more))
    assert card.config.layers == read_card(folder).config.layers
    assert any("2 tensors are not used" in note for note in card.notes)
    more["nemotron_h_moe.attention.head_count_kv"] = [0, 0, 2, 0]
    with pytest.raises(CortexError, match="nor a list of 5"):
        read_card(gguf_files.write(tmp_path / "short.gguf", folder, more=more))
