"""Tensors that nobody reads: they are named, or the model is refused for them."""

import os

import pytest

from tests.neuron.folders import CONFIG, header, shapes, write_checkpoint, write_safetensors
from tests.workers.cards import refusal
from workers.checkpoints.reading import read_card


def test_tensors_that_are_not_used_are_named(tmp_path):
    write_checkpoint(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", header(shapes(CONFIG) | {"model.mtp.weight": [4]}))
    assert read_card(tmp_path).notes == ["1 tensors are not used, among them model.mtp.weight"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", [64]),
        ("model.layers.1.mlp.gate.weight", [4, 32]),
        ("model.layers.1.mlp.down_proj.scale", [1]),
        ("model.layers.0.pre_feedforward_layernorm.weight", [32]),
        ("model.norm.bias", [32]),
        ("lm_head.bias", [40]),
    ],
)
def test_a_tensor_of_what_is_computed_that_nobody_reads_is_refused(tmp_path, name, shape):
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, header(shapes(CONFIG) | {name: shape}))
    with path.open("r+b") as file:  # the last byte of it
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert f"{path}: {name!r} is not used, and config.json says of no such tensor" in refusal(tmp_path)


def test_a_bias_of_zeros_and_a_layer_that_is_none_of_the_model_are_left_alone(tmp_path):
    """Which some write beside each quantised weight."""
    write_checkpoint(tmp_path)
    behind = f"model.layers.{CONFIG['num_hidden_layers']}.self_attn.q_proj.weight"
    more = {"model.layers.0.self_attn.q_proj.bias": [64], behind: [4]}
    write_safetensors(tmp_path / "model.safetensors", header(shapes(CONFIG) | more))
    assert read_card(tmp_path).notes == [f"2 tensors are not used, among them {min(more)}"]
