"""Models with layers that keep a state: what their files may say, and what of them is not read."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from ipc.errors import CortexError
from workers.checkpoints.card import read_card


@pytest.fixture
def changed(tiny, tmp_path):
    """A checkpoint whose config.json says something else."""
    folder = tiny("qwen3_5").folder
    config = json.loads((folder / "config.json").read_text())

    def write(**changes):
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(folder / name)
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        return tmp_path

    return write


LINEAR, FULL = "linear_attention", "full_attention"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": [LINEAR, FULL]}, "layer_types has 2 entries, and there are 4 layers"),
        ({"layer_types": [LINEAR] * 3 + ["sliding_attention"]}, "layer 3 is sliding_attention"),
        ({"layer_types": [LINEAR] * 4}, "no layer is full_attention"),
        ({"full_attention_interval": 2}, "full_attention_interval 2 disagree: layer 1 is linear_attention"),
        ({"linear_num_key_heads": 3}, "linear_num_key_heads 3 does not divide linear_num_value_heads 4"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim 1"),
        ({"linear_conv_kernel_dim": 5}, "conv1d.weight"),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type sigmoid"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"num_experts": 4}, "num_experts"),
    ],
)
def test_a_config_that_contradicts_itself_or_its_files_is_refused_by_name(changed, changes, words):
    with pytest.raises(CortexError, match=words):
        read_card(changed(**changes))


def test_layers_follow_the_interval_where_they_are_not_listed(changed):
    card = read_card(changed(layer_types=None, full_attention_interval=4))
    assert [layer.kind for layer in card.layers] == ["state", "state", "state", "full"]
    assert read_card(changed(layer_types=None)).layers == card.layers


def test_ranks_share_whole_key_heads(changed):
    with pytest.raises(CortexError, match=r"2 key heads in layers with a state\. What works: 1, 2"):
        read_card(changed()).check_ranks(4)


def test_a_head_for_several_tokens_is_named_and_not_read(changed):
    folder = changed()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    more = {"mtp.fc.weight": tensors["model.norm.weight"], "mtp.norm.weight": tensors["model.norm.weight"]}
    save_file(tensors | {name: tensor.clone() for name, tensor in more.items()}, folder / "model.safetensors")
    [note] = read_card(folder).notes
    assert note.startswith("2 tensors are a head that predicts several tokens")
