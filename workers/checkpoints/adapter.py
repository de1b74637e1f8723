"""LoRA adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) as PEFT writes them, read without torch.

A folder with `adapter_config.json` and `adapter_model.safetensors`. Beside a projection `W` of its base there
stand `A` `[rank, columns]` and `B` `[rows, rank]`, and what the projection gives is `x Wᵀ + scale (x Aᵀ) Bᵀ`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ipc.model_settings import Dtype
from workers.checkpoints import missing, within
from workers.checkpoints.card import DTYPE_BYTES, ModelCard
from workers.checkpoints.family import TensorSpec
from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.gguf.splits import QUANTIZATION
from workers.checkpoints.registry import FAMILIES
from workers.checkpoints.safetensors import Tensor, read_header
from workers.checkpoints.shares import Share
from workers.checkpoints.stored_tensors import StoredTensor, WeightFile, weight_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
STORED = ("F32", "BF16", "F16")
PREFIX = "base_model.model."  # what PEFT puts before the base's own names
A, B = ".lora_A", ".lora_B"
_PROJECTION = re.compile(
    r"model\.layers\.\d+\.((self_attn\.(q|k|v|qkv|o|gate)|(conv|mamba)\.(in|out)"
    r"|mlp\.(shared_experts?\.)?(gate|up|gate_up|down))_proj|per_layer_(input_gate|projection)"
    r"|laurel\.linear_(left|right)|altup\.(modality_router|prediction_coefs|correction_coefs))"
)
_ROUTES = re.compile(r".*\.(gate|router|shared_expert_gate)(\..*)?")
_OF_EXPERTS = re.compile(r".*\.experts\..*")
_SEES = re.compile(
    r"(model\.)?(visual|vision_\w+|embed_(vision|audio)|multi_modal_projector|mm_projector|audio_\w+)\."
)
_NOT_DONE = {  # keys of the config that would change numbers, and what they are where they do not
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "alpha_pattern": {},
    "rank_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}

# Ways to begin with A and B that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take
# from its weights what they put into the adapter, which beside the whole base would count twice.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# What names have at their end for how weights are stored: one word or several, then a label.
_STORED_AS = re.compile(
    r"(?:[-.](?:gguf|\d{5}-of-\d{5}|unsloth|bnb|[48]bit|awq|gptq|int[48]|fp8|nvfp4|"
    rf"{QUANTIZATION.pattern}))*(?::.*)?$",
    re.IGNORECASE,
)


class AdapterCard(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter on disk that fits its base. `tensors` are A and B of each projection, by its name in the
    base and `.lora_A` or `.lora_B`."""

    name: str
    folder: str
    made_for: str  # what its files call its base; "": they do not say
    scale: float
    files: list[WeightFile]
    tensors: dict[str, StoredTensor]

    def doubt(self, name: str, base: ModelCard) -> str | None:
        """Why it may be for another base than this one, called `name`; None where it is what it says.

        A name is only that: people rename folders, and shapes were compared. The last part counts, and of a
        folder of the hub's cache its repository's; not how the weights are stored. One of GGUF has the name
        of its file, too.
        """
        said = _last(self.made_for)
        if not said or said in map(_last, (name, base.folder, base.files[0].name)):
            return None
        return f"the adapter {self.name} says that it was made for {self.made_for}: see whether this is that"

    @property
    def projections(self) -> list[str]:
        """Names of what it stands beside, in the base, without `.weight`."""
        return [name.removesuffix(A) for name in self.tensors if name.endswith(A)]

    def bytes_on_rank(self, base: ModelCard, share: Share, dtype: Dtype) -> int:
        """Bytes that it takes on a rank."""
        elements = 0
        for name, tensor in self.tensors.items():
            weight = base.tensors[f"{name.removesuffix(A).removesuffix(B)}.weight"]
            shared = weight.sharing if (weight.sharing == "columns") == name.endswith(A) else "none"
            elements += TensorSpec(name, tensor.shape, shared).elements_on_rank(base.config, share)
        return elements * DTYPE_BYTES[dtype]


class _Config(msgspec.Struct, kw_only=True):
    peft_type: str = "LORA"
    r: Annotated[int, Meta(ge=1)]
    lora_alpha: Annotated[float, Meta(gt=0)]
    use_rslora: bool = False
    base_model_name_or_path: str | None = None


def read_adapter(name: str, folder: Path | str, base: ModelCard) -> AdapterCard:
    """What is in `folder`, and whether it fits.

    Args:
        name: that requests call it by.
        base: the model that it is for.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file that is missing or damaged, what is not supported, or
            that it is for another base.
    """
    folder = Path(folder).expanduser()
    if base.config.bidirectional:
        refuse(folder, f"adapters of {base.architecture}, an encoder, are not supported")
    path = folder / CONFIG
    config, given = read_json(path, _Config), read_json(path, dict[str, Any])
    if config.peft_type != "LORA":
        refuse(path, f"peft_type {config.peft_type} is not supported; there is LORA")
    for key, harmless in _NOT_DONE.items():
        if given.get(key) not in (harmless, None, [], {}):
            refuse(path, f"{key}: {given[key]!r} is not supported")
    if (begun := given.get("init_lora_weights")) not in _BEGINNINGS:
        refuse(
            path,
            f"init_lora_weights: {begun!r} changes the base as well, and is not supported. PEFT saves such "
            "an adapter as a plain one with `path_initial_model_for_weight_conversion`",
        )
    weights = folder / WEIGHTS
    if not os.path.lexists(weights):
        refuse(weights, f"is missing{missing.instead(folder, missing.ADAPTERS)}")
    stored = read_header(weights)
    if not stored:
        refuse(weights, "holds no tensors")
    usual_name = FAMILIES[base.family].usual_name
    tensors: dict[str, StoredTensor] = {}
    for full, tensor in stored.items():
        projection, part = _place(weights, full, tensor, usual_name)
        tensors[projection + part] = StoredTensor(tensor.shape, tensor.dtype, 0, tensor.offset, "none")
    for projection in {key.removesuffix(A).removesuffix(B) for key in tensors}:
        _check(weights, projection, tensors, base.tensors)
    return AdapterCard(
        name=name,
        folder=str(folder),
        made_for=config.base_model_name_or_path or "",
        scale=config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r),
        files=[weight_file(weights, weights.parent)],
        tensors=tensors,
    )


def _last(name: str) -> str:
    """The last part of a path, or of an id of the hub, however its cache spells it; "": there is none."""
    parts = [part for part in re.split(r"[/\\]", name.casefold()) if part]
    if parts[-2:-1] == ["snapshots"]:
        parts = parts[:-2]
    last = parts[-1] if parts else ""
    if last.startswith("models--"):
        last = last.rpartition("--")[2]
    return _STORED_AS.sub("", last)


def _place(path: Path, full: str, tensor: Tensor, usual_name: Callable[[str], str]) -> tuple[str, str]:
    """The projection that a tensor stands beside, as it is usually called, and which of the two it is."""
    name = full.removeprefix(PREFIX).removesuffix(".weight")
    part = A if name.endswith(A) else B
    own = name.removesuffix(part)
    if _SEES.match(own):
        refuse(path, f"{full!r} is beside what sees or hears, and only its language model has adapters")
    projection = usual_name(within.usual(f"{own}.weight")).removesuffix(".weight")
    for of, kind in ((_ROUTES, "a router"), (_OF_EXPERTS, "one of many experts")):
        if of.fullmatch(projection):
            refuse(path, f"{full!r} is beside {kind}, and adapters of these are not supported")
    if name == own or not _PROJECTION.fullmatch(projection):
        refuse(
            path,
            f"{full!r} is beside no projection of attention, short convolution, MLP or a layer's input, and "
            "only these are supported",
        )
    if tensor.dtype not in STORED or len(tensor.shape) != 2:
        refuse(path, f"{full!r} is {tensor.dtype} {list(tensor.shape)}, not a matrix of {', '.join(STORED)}")
    return projection, part


def _check(
    path: Path, projection: str, tensors: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]
) -> None:
    """See that A and B are both there, and that they fit the projection of the base."""
    for part in (A, B):
        if projection + part not in tensors:
            refuse(path, f"has no {projection}{part}.weight, and the other of the two")
    weight = base.get(f"{projection}.weight")
    if weight is None:
        refuse(path, f"is for another base: this one has no {projection}")
    (rank, columns), (rows, width) = tensors[projection + A].shape, tensors[projection + B].shape
    if (rows, columns) != weight.shape:
        refuse(
            path,
            f"is for another base: {projection} is [{rows}, {columns}] there, and {list(weight.shape)} here",
        )
    if rank != width:
        refuse(path, f"{projection}: A has rank {rank}, and B has {width}")
