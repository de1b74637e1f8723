"""Tensors in a model's files that nobody reads: what they are, and which of them cannot be left alone.

A weight or a bias in a layer that is computed, or of a module of which another tensor is read, would change
the numbers if it were followed: a model without it is another one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from workers.checkpoints.config import ModelConfig
from workers.checkpoints.families.llama import HEAD
from workers.checkpoints.family import MTP_HEAD, Family
from workers.checkpoints.files import open_file, refuse
from workers.checkpoints.safetensors import Tensor

HARMLESS = (
    HEAD,
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
    "position_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
    ".embed_tokens.weight",  # once more, in a head that predicts the token after the next
    ".shared_head.head.weight",
)  # what old files hold and nobody reads
COMPUTED = ("weight", "bias", "scale")
SHARED_KEYS = ("k_proj", "v_proj", "k_norm", "v_norm")  # of a layer that reads those of another one
LATENT_ONCE_MORE = "kv_b_proj"  # beside the two matrices that it is divided into
LARGEST_BIAS = 1 << 22  # bytes, of what is looked at

_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")


def notes(
    path: Path,
    family: Family,
    model: ModelConfig,
    tensors: Mapping[str, Tensor],
    used: Collection[str],
    ignored: tuple[str, ...] = (),
) -> Iterator[str]:
    """What those of `tensors` are that are not `used`.

    Args:
        path: of what says what the model is.
        ignored: endings of what a quantisation has besides.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming one that would change the numbers.
    """
    unused = sorted(name for name in tensors.keys() - set(used) if not name.endswith((*HARMLESS, *ignored)))
    beside = _beside(family, model)
    for what in dict.fromkeys(beside.values()):
        prefixes = tuple(prefix for prefix, each in beside.items() if each == what)
        known = [name for name in unused if name.startswith(prefixes)]
        unused = [name for name in unused if not name.startswith(prefixes)]
        if known:
            yield f"{len(known)} tensors are {what}"
    modules = {name.rpartition(".")[0] for name in used}
    for name in unused:
        if _is_computed(name, model, modules) and not _is_zero(name, tensors[name]):
            refuse(tensors[name].file, f"{name!r} is not used, and {path.name} says of no such tensor")
    if unused:
        yield f"{len(unused)} tensors are not used, among them {unused[0]}"


def _beside(family: Family, model: ModelConfig) -> Mapping[str, str]:
    """What may be there and is not read, by how its names begin: in some files a head is one layer more."""
    if family.mtp is None or model.mtp:
        return family.beside
    return {**family.beside, f"model.layers.{model.num_layers}.": MTP_HEAD}


def _is_computed(name: str, model: ModelConfig, modules: Collection[str]) -> bool:
    """Whether a model that has it computes with it."""
    module, _, own = name.rpartition(".")
    if own not in COMPUTED:
        return False
    if module in modules:
        return True
    match, part = _LAYER.match(name), module.rpartition(".")[2]
    if match is None or int(match[1]) >= model.num_layers:
        return False
    if part in SHARED_KEYS and model.layers[int(match[1])].keys_of is not None:
        return False
    return not (model.latent is not None and part == LATENT_ONCE_MORE)


def _is_zero(name: str, tensor: Tensor) -> bool:
    """Whether it is a bias that adds nothing, as some write one beside every quantised weight."""
    if not name.endswith(".bias") or tensor.size > LARGEST_BIAS:
        return False
    with open_file(tensor.file) as file:
        file.seek(tensor.offset)
        return not any(file.read(tensor.size))
