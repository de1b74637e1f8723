"""Quantised checkpoints with random weights, written in little more than it takes to write their bytes.

Few numbers are drawn, and tensors repeat them: what a step takes does not depend on them. They are about as
large as those of a trained model, so that nothing overflows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import gguf
import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

FP8_BLOCK = 128
DEVIATION = 0.02  # of weights
DRAWN = 1 << 22  # numbers, or bytes of blocks
# Where a block has its scales, float16, and what they are where all its other bytes are random.
SCALES = {"Q4_K": {0: DEVIATION / 258, 2: 7.5 * DEVIATION / 258}, "Q6_K": {208: DEVIATION / 1370}}


def write_gguf(folder: Path, shape: PretrainedConfig) -> Path:
    """A Qwen3 in Q4_K, with its head in Q6_K as llama.cpp writes it; returns the file.

    Args:
        shape: its sizes; all columns are whole blocks of 256.
    """
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_tokenizer_model("llama")  # nobody reads a text here
    writer.add_token_list(["<unk>", "<s>", "</s>"])
    writer.add_token_scores([0.0, 0.0, 0.0])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape.num_hidden_layers)
    tensors = dict(sizes(shape))
    longest = max(math.prod(size) for size in tensors.values())
    blocks = {
        kind: random_blocks(kind, longest) for kind in SCALES
    }  # which tensors share until they are read
    for name, size in tensors.items():
        known = names.get_name(name, (".weight",))
        if len(size) == 1:
            writer.add_tensor(known, numpy.ones(size, numpy.float32))
            continue
        kind = "Q6_K" if known == "output.weight" else "Q4_K"
        type_ = gguf.GGMLQuantizationType[kind]
        row = gguf.quant_shape_to_byte_shape(size, type_)[1]
        data = blocks[kind].reshape(-1)[: size[0] * row].reshape(size[0], row)
        writer.add_tensor(known, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_fp8(folder: Path, shape: PretrainedConfig) -> Path:
    """A model in FP8 with a scale for 128 x 128 numbers, embedding and head in bfloat16; returns `folder`."""
    torch.manual_seed(0)
    numbers = torch.randn(DRAWN)
    narrow, wide = numbers.to(torch.float8_e4m3fn).view(torch.uint8), (numbers * DEVIATION).bfloat16()
    places: dict[str, str] = {}
    for part, group in groupby(
        sizes(shape), lambda item: item[0].split(".")[:3]
    ):  # a layer, and what is in none
        file, tensors = f"{'.'.join(part)}.safetensors", dict[str, Tensor]()
        for name, size in group:
            if len(size) == 1:
                tensors[name] = torch.ones(size, dtype=torch.bfloat16)
            elif ".layers." in name:
                tensors[name] = repeated(narrow, size).view(torch.float8_e4m3fn)
                scales = [-(-each // FP8_BLOCK) for each in size]
                tensors[f"{name}_scale_inv"] = torch.full(scales, DEVIATION)
            else:
                tensors[name] = repeated(wide, size)
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    quantised = {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK], "fmt": "e4m3"}
    architecture = type(of_no_memory(shape)).__name__
    config = shape.to_dict() | {"architectures": [architecture], "quantization_config": quantised}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return folder


def sizes(shape: PretrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names of a model's tensors as files have them, and their shapes; of experts one after the other."""
    for name, parameter in of_no_memory(shape).named_parameters():
        size, (experts, _, own) = tuple(parameter.shape), name.rpartition(".experts.")
        if not experts:
            yield name, size
            continue
        count, rows, columns = size
        parts = ("gate_proj", "up_proj") if own == "gate_up_proj" else (own,)
        for number in range(count):
            for part in parts:
                yield f"{experts}.experts.{number}.{part}.weight", (rows // len(parts), columns)


def of_no_memory(shape: PretrainedConfig) -> torch.nn.Module:
    """The model of `transformers`, whose tensors hold nothing."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape)


def random_blocks(kind: str, elements: int) -> numpy.ndarray:  # [blocks, bytes of a block] uint8
    """The blocks of so many numbers or more."""
    of_block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    drawn = numpy.random.default_rng(0).integers(0, 256, (DRAWN // nbytes, nbytes), numpy.uint8)
    for place, scale in SCALES[kind].items():
        drawn[:, place : place + 2] = numpy.frombuffer(numpy.float16(scale).tobytes(), numpy.uint8)
    return numpy.resize(drawn, (-(-elements // of_block), nbytes))


def repeated(drawn: Tensor, size: tuple[int, ...]) -> Tensor:
    """A new tensor of that shape with the numbers drawn, as often as it takes."""
    count = math.prod(size)
    return drawn.repeat(-(-count // len(drawn)))[:count].clone().view(size)
