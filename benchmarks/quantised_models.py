"""Quantised checkpoints with random weights, written in little more than it takes to write their bytes.

Few numbers are drawn, and tensors repeat them: what a step takes does not depend on them. They are about as
large as those of a trained model, so that nothing overflows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import gguf
import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

FP8_BLOCK = AWQ_GROUP = 128
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
    narrow = drawn().to(torch.float8_e4m3fn).view(torch.uint8)

    def parts(rows: int, columns: int) -> dict[str, Tensor]:
        scales = torch.full((-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)), DEVIATION)
        numbers = repeated(narrow, (rows, columns)).view(torch.float8_e4m3fn)
        return {"weight": numbers, "weight_scale_inv": scales}

    quantised = {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK], "fmt": "e4m3"}
    return write_scheme(folder, shape, quantised, parts)


def write_awq(folder: Path, shape: PretrainedConfig) -> Path:
    """The same in AWQ, in groups of 128."""
    words = random_bytes().view(torch.int32)

    def parts(rows: int, columns: int) -> dict[str, Tensor]:
        groups = columns // AWQ_GROUP
        return {
            "qweight": repeated(words, (columns, rows // 8)),
            "qzeros": torch.full((groups, rows // 8), -0x77777778, dtype=torch.int32),  # of which all are 8
            "scales": torch.full((groups, rows), DEVIATION / 4.6, dtype=torch.float16),
        }

    quantised = {"quant_method": "awq", "bits": 4, "group_size": AWQ_GROUP, "zero_point": True}
    return write_scheme(folder, shape, quantised, parts)


def write_nvfp4(folder: Path, shape: PretrainedConfig) -> Path:
    """The same in NVFP4, as ModelOpt writes it."""
    pairs = random_bytes()

    def parts(rows: int, columns: int) -> dict[str, Tensor]:
        return {
            "weight": repeated(pairs, (rows, columns // 2)),
            "weight_scale": torch.ones(rows, columns // 16).to(torch.float8_e4m3fn),
            "weight_scale_2": torch.tensor(DEVIATION / 2.8),
        }

    return write_scheme(folder, shape, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, parts)


def write_scheme(
    folder: Path,
    shape: PretrainedConfig,
    quantised: dict[str, object],
    parts: Callable[[int, int], dict[str, Tensor]],
) -> Path:
    """A model whose layers are quantised, with embedding and head in bfloat16; returns `folder`.

    Args:
        quantised: what `config.json` says of it.
        parts: the tensors of a weight of so many rows and columns, by the ends of their names.
    """
    wide = (drawn() * DEVIATION).bfloat16()
    places: dict[str, str] = {}
    for part, group in groupby(
        sizes(shape), lambda item: item[0].split(".")[:3]
    ):  # a layer, and what is in none
        file, tensors = f"{'.'.join(part)}.safetensors", dict[str, Tensor]()
        for name, size in group:
            if len(size) == 1:
                tensors[name] = torch.ones(size, dtype=torch.bfloat16)
            elif ".layers." in name:
                module = name.removesuffix("weight")
                tensors |= {module + end: each for end, each in parts(*size).items()}
            else:
                tensors[name] = repeated(wide, size)
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    architecture = type(of_no_memory(shape)).__name__
    config = shape.to_dict() | {"architectures": [architecture], "quantization_config": quantised}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return folder


def drawn() -> Tensor:
    """Numbers of a normal distribution, the same each time."""
    torch.manual_seed(0)
    return torch.randn(DRAWN)


def random_bytes() -> Tensor:
    """Of numbers of four bits, the same each time."""
    return torch.randint(0, 256, (DRAWN,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def sizes(shape: PretrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names of a model's tensors as files have them, and their shapes; of experts one after the other."""
    model = of_no_memory(shape)
    stored = model.state_dict().keys()
    buffers = [(name, each) for name, each in model.named_buffers() if name in stored]
    for name, tensor in (*model.named_parameters(), *buffers):
        size, (experts, _, own) = tuple(tensor.shape), name.rpartition(".experts.")
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


def repeated(few: Tensor, size: tuple[int, ...]) -> Tensor:
    """A new tensor of that shape with those numbers, as often as it takes."""
    count = math.prod(size)
    return few.repeat(-(-count // len(few)))[:count].clone().view(size)
