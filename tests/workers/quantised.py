"""Tiny checkpoints in every scheme of quantised weights, and the numbers that their weights mean.

Each `Writer` makes of a weight `[rows, columns]` the tensors that a scheme stores, by the layout that it
publishes and in numpy, and says what they are dequantised to. Nothing here is shared with what reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.workers.oracle import fill
from tests.workers.tiny_models import qwen3, qwen3_moe

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
Stored = dict[str, torch.Tensor]  # by the end of a name
Writer = Callable[[np.ndarray], tuple[Stored, np.ndarray]]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of outputs in an int32, from its lowest bits
NF4 = np.float32(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
BNB_FP4 = np.float32([0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25])
BNB_FP4 = np.concatenate([BNB_FP4, -BNB_FP4])
E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def fp8(array: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Rounded to e4m3, and what that is. What is too large for it is no number in some builds of torch."""
    rounded = tensor(array.astype(np.float32).clip(-448, 448)).to(torch.float8_e4m3fn)
    return rounded, rounded.float().numpy()


def spread(scales: np.ndarray, block: int, axis: int = 1) -> np.ndarray:
    return np.repeat(scales, block, axis=axis)


def int32(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers from zero up along the last axis, the first in the lowest bits."""
    per = 32 // bits
    words = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // per), np.uint32)
    for place in range(per):
        words |= numbers[..., place::per].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def fp8_blocks(w: np.ndarray, name: str = "weight_scale_inv") -> tuple[Stored, np.ndarray]:
    rows, columns = (-(-size // 128) for size in w.shape)
    scales = np.random.default_rng(1).uniform(0.001, 0.01, (rows, columns)).astype(np.float32)
    wide = spread(spread(scales, 128), 128, axis=0)[: w.shape[0], : w.shape[1]]
    numbers, values = fp8(w / wide)
    return {"weight": numbers, name: tensor(scales)}, values * wide


def fp8_rows(w: np.ndarray) -> tuple[Stored, np.ndarray]:
    scales = tensor(np.abs(w).max(axis=1, keepdims=True) / 448).bfloat16()
    numbers, values = fp8(w / scales.float().numpy())
    stored = {"weight": numbers, "weight_scale": scales, "input_scale": torch.ones(1)}
    return stored, values * scales.float().numpy()


def fp8_whole(w: np.ndarray, name: str = "weight_scale") -> tuple[Stored, np.ndarray]:
    scale = np.float32(np.abs(w).max() / 448)
    numbers, values = fp8(w / scale)
    return {"weight": numbers, name: torch.tensor(scale), "input_scale": torch.tensor(1.0)}, values * scale


def int8_rows(w: np.ndarray) -> tuple[Stored, np.ndarray]:
    scales = np.abs(w).max(axis=1, keepdims=True).astype(np.float32) / 127
    numbers = np.rint(w / scales).astype(np.int8)
    return {"weight": tensor(numbers), "weight_scale": tensor(scales)}, numbers * scales


def in_groups(w: np.ndarray, group: int, bits: int, symmetric: bool, scale_type: type):
    """Numbers from zero up, scales and zero points of each group, and what they mean."""
    parts, top = w.reshape(len(w), -1, group), (1 << bits) - 1
    if symmetric:
        scales = (np.abs(parts).max(axis=2) / (top // 2)).astype(scale_type)
        zeros = np.full(scales.shape, 1 << bits - 1)
    else:
        low, high = parts.min(axis=2), parts.max(axis=2)
        scales = ((high - low) / top).astype(scale_type)
        zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, top).astype(int)
    wide = scales.astype(np.float32)[..., None]
    numbers = np.clip(np.rint(parts / wide) + zeros[..., None], 0, top)
    values = (numbers - zeros[..., None]).astype(np.float32) * wide
    return numbers.reshape(w.shape).astype(int), scales, zeros, values.reshape(w.shape)


def awq(w: np.ndarray, group: int = 128) -> tuple[Stored, np.ndarray]:
    numbers, scales, zeros, values = in_groups(w, group, 4, False, np.float16)

    def pack(inputs: np.ndarray) -> torch.Tensor:  # [inputs, outputs]
        ordered = inputs.reshape(len(inputs), -1, 8)[:, :, AWQ_ORDER].reshape(inputs.shape)
        return tensor(int32(ordered, 4))

    return {"qweight": pack(numbers.T), "qzeros": pack(zeros.T), "scales": tensor(scales.T)}, values


def out_of_order(w: np.ndarray, group: int, *how: Any) -> tuple[np.ndarray, ...]:
    """As `in_groups`, of groups whose columns are drawn by lot, and at last the group of each column: the
    same for all weights of so many columns."""
    order = np.random.default_rng(w.shape[1]).permutation(w.shape[1])
    numbers, scales, zeros, values = in_groups(w[:, order], group, *how)
    back = np.argsort(order)
    return numbers[:, back], scales, zeros, values[:, back], (back // group).astype(np.int32)


def gptq(
    w: np.ndarray,
    group: int = 128,
    bits: int = 4,
    symmetric: bool = True,
    less: int = 1,
    act_order: bool = False,
) -> tuple[Stored, np.ndarray]:
    index = np.arange(w.shape[1], dtype=np.int32) // group
    if act_order:
        numbers, scales, zeros, values, index = out_of_order(w, group, bits, symmetric, np.float16)
    else:
        numbers, scales, zeros, values = in_groups(w, group, bits, symmetric, np.float16)
    stored = {
        "qweight": tensor(int32(numbers, bits).T),
        "qzeros": tensor(int32(zeros.T - less & (1 << bits) - 1, bits)),
        "scales": tensor(scales.T),
        "g_idx": tensor(index),
    }
    return stored, values


def packed(
    w: np.ndarray,
    group: int = 128,
    bits: int = 4,
    symmetric: bool = True,
    scale_type: type = np.float16,
    act_order: bool = False,
) -> tuple[Stored, np.ndarray]:
    stored: Stored = {}
    if act_order:
        numbers, scales, zeros, values, index = out_of_order(w, group, bits, symmetric, scale_type)
        stored["weight_g_idx"] = tensor(index)
    else:
        numbers, scales, zeros, values = in_groups(w, group or w.shape[1], bits, symmetric, scale_type)
    stored |= {
        "weight_packed": tensor(int32(numbers, bits)),
        "weight_scale": tensor(scales),
        "weight_shape": torch.tensor(w.shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = tensor(int32(zeros.T, bits).T)
    return stored, values


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.abs(values[..., None] - table).argmin(axis=-1)


def pairs(numbers: np.ndarray, first_is_high: bool = False) -> np.ndarray:
    first, second = numbers[..., ::2], numbers[..., 1::2]
    return (first << 4 | second if first_is_high else first | second << 4).astype(np.uint8)


def nvfp4(w: np.ndarray, divided: bool = False) -> tuple[Stored, np.ndarray]:
    whole = np.float32(0.0625)
    scales, wide = fp8(np.abs(w).reshape(len(w), -1, 16).max(axis=2) / 6 / whole)
    each = spread(wide * whole, 16)
    numbers = nearest(w / each, E2M1)
    if divided:
        names, one = ("weight_packed", "weight_global_scale"), torch.tensor([1 / whole])
    else:
        names, one = ("weight", "weight_scale_2"), torch.tensor(whole)
    stored = {names[0]: tensor(pairs(numbers)), "weight_scale": scales, names[1]: one}
    return stored | {"input_scale": torch.tensor(1.0)}, E2M1[numbers] * each


def mxfp4(w: np.ndarray) -> tuple[Stored, np.ndarray]:
    exponents = np.floor(np.log2(np.abs(w).reshape(len(w), -1, 32).max(axis=2))).astype(int) - 2
    each = spread(np.float32(2.0) ** exponents, 32)
    numbers = nearest(w / each, E2M1)
    stored = {
        "weight_packed": tensor(pairs(numbers)),
        "weight_scale": tensor((exponents + 127).astype(np.uint8)),
    }
    return stored, E2M1[numbers] * each


def bnb4(
    w: np.ndarray, kind: str = "nf4", nested: bool = False, block: int = 64
) -> tuple[Stored, np.ndarray]:
    table = {"nf4": NF4, "fp4": BNB_FP4}[kind]
    absmax = np.abs(w).reshape(-1, block).max(axis=1).astype(np.float32)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": w.shape}
    stored = {"weight.quant_map": tensor(table)}
    if nested:
        offset, per = np.float32(absmax.mean()), 256
        meaning = np.linspace(-1, 1, 256).astype(np.float32)
        parts = np.pad(absmax - offset, (0, -len(absmax) % per)).reshape(-1, per)
        largest = np.abs(parts).max(axis=1).astype(np.float32)
        numbers = nearest(parts / largest[:, None], meaning).reshape(-1)[: len(absmax)]
        absmax = meaning[numbers] * np.repeat(largest, per)[: len(absmax)] + offset
        state |= {"nested_blocksize": per, "nested_dtype": "float32", "nested_offset": float(offset)}
        stored |= {
            "weight.absmax": tensor(numbers.astype(np.uint8)),
            "weight.nested_absmax": tensor(largest),
            "weight.nested_quant_map": tensor(meaning),
        }
    else:
        stored["weight.absmax"] = tensor(absmax)
    numbers = nearest(w.reshape(-1, block) / absmax[:, None], table)
    stored["weight"] = tensor(pairs(numbers.reshape(-1), first_is_high=True)[:, None])
    text = json.dumps(state).encode()
    stored[f"weight.quant_state.bitsandbytes__{kind}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return stored, (table[numbers] * absmax[:, None]).reshape(w.shape)


def bnb8(w: np.ndarray) -> tuple[Stored, np.ndarray]:
    largest = np.abs(w).max(axis=1).astype(np.float32)
    numbers = np.rint(w / largest[:, None] * 127).astype(np.int8)
    stored = {
        "weight": tensor(numbers),
        "SCB": tensor(largest),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return stored, numbers * (largest[:, None] / 127)


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 128,
    } | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
MODELOPT = {"quant_method": "modelopt", "ignore": ["lm_head"]}
EIGHT = {"num_bits": 8, "strategy": "channel", "group_size": None}
SCHEMES: dict[str, tuple[dict[str, Any], Writer]] = {
    "fp8_blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        fp8_blocks,
    ),
    "fp8_whole": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8_whole),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        awq,
    ),
    "awq_64": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
        partial(awq, group=64),
    ),
    "gptq": (GPTQ, gptq),
    "gptq_zeros_32": (GPTQ | {"sym": False, "group_size": 32}, partial(gptq, symmetric=False, group=32)),
    "gptq_v2": (
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        partial(gptq, symmetric=False, less=0),
    ),
    "gptq_act_order": (
        GPTQ | {"sym": False, "desc_act": True, "group_size": 64},
        partial(gptq, symmetric=False, group=64, act_order=True),
    ),
    "gptq_8": (GPTQ | {"bits": 8}, partial(gptq, bits=8)),
    "w4a16": (compressed("pack-quantized"), packed),
    "w4a16_float32_scales": (compressed("pack-quantized"), partial(packed, scale_type=np.float32)),
    "w4a16_zeros_32": (
        compressed("pack-quantized", symmetric=False, group_size=32),
        partial(packed, symmetric=False, group=32),
    ),
    "w4a16_act_order": (compressed("pack-quantized", actorder="group"), partial(packed, act_order=True)),
    "w8a16": (compressed("pack-quantized", **EIGHT), partial(packed, bits=8, group=0)),
    "w8a8": (compressed("int-quantized", **EIGHT), int8_rows),
    "fp8_rows": (compressed("float-quantized", type="float", **EIGHT), fp8_rows),
    "fp8_compressed_blocks": (
        compressed(
            "float-quantized", type="float", **EIGHT | {"strategy": "block", "block_structure": [128, 128]}
        ),
        partial(fp8_blocks, name="weight_scale"),
    ),
    "nvfp4_compressed": (
        compressed("nvfp4-pack-quantized", type="float", strategy="tensor_group", group_size=16),
        partial(nvfp4, divided=True),
    ),
    "mxfp4": (compressed("mxfp4-pack-quantized", type="float", group_size=32), mxfp4),
    "nvfp4": (MODELOPT | {"quant_algo": "NVFP4"}, nvfp4),
    "fp8_modelopt": (MODELOPT | {"quant_algo": "FP8"}, fp8_whole),
    "modelopt_mixed": (
        MODELOPT
        | {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4", "group_size": 16}},
        },
        lambda weight: (nvfp4 if weight.shape[0] > weight.shape[1] else fp8_whole)(weight),
    ),
    "nf4": (BNB4 | {"bnb_4bit_quant_type": "nf4"}, bnb4),
    "nf4_nested": (
        BNB4 | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        partial(bnb4, nested=True),
    ),
    "fp4": (BNB4 | {"bnb_4bit_quant_type": "fp4"}, partial(bnb4, kind="fp4")),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb8),
}


# of a Mixtral, too, and of layers with a state
PROJECTIONS = ("_proj", ".w1", ".w2", ".w3", ".in_proj_qkv", ".in_proj_z", ".in_proj_qkvz")


def write(
    name: str,
    folder: Path,
    make: Callable[[], PreTrainedModel] | None = None,
    *,
    experts: bool = False,
    **changes: Any,
) -> PreTrainedModel:
    """Write a checkpoint in that scheme; returns transformers with the numbers that it means.

    Args:
        make: the model; None: a Qwen3.
        experts: whether that has some.
        changes: of `quantization_config`.
    """
    config, writer = SCHEMES[name]
    torch.manual_seed(3)
    if make is None:
        make = partial(qwen3_moe, **SIZES | EXPERTS) if experts else partial(qwen3, **SIZES)
    model = make()
    fill(model, std=0.12)
    meant = folder / "meant"  # not a part of the checkpoint, which has no folders
    model.save_pretrained(meant)
    tensors: Stored = {}
    dense = load_file(meant / "model.safetensors")
    for key, weight in dense.items():
        module = key.removesuffix(".weight")
        if module.endswith(PROJECTIONS):
            stored, values = writer(weight.numpy().copy())
            tensors |= {f"{module}.{end}": each.contiguous().clone() for end, each in stored.items()}
            dense[key] = tensor(values.astype(np.float32))
        else:
            tensors[key] = weight
    save_file(dense, meant / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "model.safetensors")
    given = json.loads((meant / "config.json").read_text()) | {"quantization_config": config | changes}
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return type(model).from_pretrained(meant, dtype=torch.float32).eval()
