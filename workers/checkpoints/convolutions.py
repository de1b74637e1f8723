"""Convolutions over each channel by itself, which layers with a state begin with, as files have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from workers.checkpoints.safetensors import Tensor

NAMES = ("conv1d.weight", ".conv.conv.weight")


def channels_as_rows(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with each channel's weights as a row, where they have a dimension more."""
    found = dict(stored)
    for name, tensor in found.items():
        if name.endswith(NAMES) and len(tensor.shape) == 3 and tensor.shape[1] == 1:
            found[name] = replace(tensor, shape=(tensor.shape[0], tensor.shape[2]))
    return found
