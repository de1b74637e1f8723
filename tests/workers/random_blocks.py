"""Weights in blocks of random bits."""

from __future__ import annotations

import torch

from workers.checkpoints.blocks import FORMATS
from workers.weights.blocks import Blocks
from workers.weights.dequantise import BY_ROW
from workers.weights.quantise import QUANTISERS, quantise
from workers.weights.rows import four_times

SCALES = {"Q6_K": [208], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "MXFP4": []}
COLUMNS = 768


def random_weight(name: str, rows: int, columns: int = COLUMNS) -> Blocks:
    """Random bytes, with scales that are numbers."""
    form = FORMATS[name]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    data = torch.randint(0, 256, (rows, form.row_bytes(columns)), dtype=torch.uint8, generator=generator)
    if name.startswith("INT4"):  # whose zero points are in the last bits of scales
        scales = torch.rand(rows, columns // form.elements, generator=generator) * 0.01
        data[:, columns // 2 :] = scales.view(torch.uint8)
        return Blocks(form, data, torch.bfloat16)
    blocks = data.view(rows, -1, form.nbytes)
    for at in SCALES.get(name, [0]):
        scales = torch.randn(blocks.shape[:2], generator=generator) * 0.01
        blocks[:, :, at : at + 2] = scales.half().unsqueeze(-1).view(torch.uint8)
    if name == "MXFP4":
        blocks[:, :, 0] = blocks[:, :, 0] % 8 + 116
    return Blocks(form, data, torch.bfloat16)


def weight_of(kind: str, rows: int, columns: int) -> Blocks:
    """Random numbers; scales that are numbers too."""
    form = FORMATS[kind]
    if kind not in BY_ROW:
        return random_weight(kind, rows, columns)
    generator = torch.Generator().manual_seed(0)
    if kind in QUANTISERS:
        return Blocks(form, quantise(kind, torch.randn(rows, columns, generator=generator)))
    data = torch.randint(0, 256, (rows, form.row_bytes(columns)), dtype=torch.uint8, generator=generator)
    floats = form.row_nbytes or data.shape[1] - columns // 2
    scales = torch.rand(rows, floats // 4, generator=generator) + 0.5
    scales = four_times(scales[:, :1]) if form.row_nbytes else scales
    data[:, -floats:] = scales.contiguous().view(torch.uint8)
    if "FP8" in kind or kind == "NVFP4":
        data[:, :-floats] &= 0xF7  # none is a NaN
    return Blocks(form, data)
