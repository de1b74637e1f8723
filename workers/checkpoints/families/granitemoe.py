"""Granite with experts (3.x), and with an MLP beside them.

GraniteMoeSWA has windows, as GraniteSWA has. One without experts has the MLP alone. Granite 4 is beside this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.granite import GraniteFile, Theta, scales_of, windowed
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, in_causal
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.stacked import unstacked_rows

ROUTED, BESIDE, SHARED = ".block_sparse_moe.", ".shared_mlp.", "shared_mlp"
EXPERTS = {
    "router.layer.weight": "gate.weight",
    "input_linear.weight": "experts.gate_up_proj",
    "output_linear.weight": "experts.down_proj",
    # of GraniteMoeSWA
    "router.weight": "gate.weight",
    "experts.": "experts.",
}
SWA = "GraniteMoeSWAForCausalLM"


class GraniteMoeFile(GraniteFile, kw_only=True):
    """The keys of such a `config.json`."""

    num_local_experts: Annotated[int, Meta(ge=0)] = 8
    num_experts_per_tok: Annotated[int, Meta(ge=0)] = 2
    shared_intermediate_size: Annotated[int, Meta(ge=0)] = 0


class GraniteMoeSwaFile(GraniteMoeFile, kw_only=True):
    """The keys of one with windows."""

    sliding_window: Size | None = 128
    layer_rope_theta: list[Theta] | None = None  # of each layer; 0: it has no positions


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has experts, or none has."""
    file = config.read(
        path, given, GraniteMoeSwaFile if SWA in given.get("architectures", ()) else GraniteMoeFile
    )
    windows: list[int | None] = [None] * file.num_hidden_layers
    changes: dict[str, Any] = {}
    if isinstance(file, GraniteMoeSwaFile):
        file, windows, changes = windowed(path, file, file.layer_rope_theta)
    return with_experts(path, file, windows, **changes)


def with_experts(path: Path, file: GraniteMoeFile, windows: list[int | None], **changes: Any) -> ModelConfig:
    """What a file says, where every layer has experts and maybe an MLP beside them, or that alone."""
    count, chosen = file.num_local_experts, file.num_experts_per_tok
    if count:
        config.refuse_above(path, file, "num_experts_per_tok", "num_local_experts")
        if not chosen:
            refuse(path, f"num_experts_per_tok is 0, and there are {count} experts")
    shared = file.shared_intermediate_size
    if not count and not shared:
        refuse(path, "num_local_experts and shared_intermediate_size are both 0")
    experts = Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(file.num_hidden_layers)),
        normalised=True,
        shared_size=shared,
        shared_name=SHARED,
    )
    return config.model_config(
        path,
        file if count else msgspec.structs.replace(file, intermediate_size=shared),
        windows,
        **changes,
        experts=experts if count else None,
        **scales_of(file),
    )


def rearranged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that every other family has. Of two projections in one, gates stand above."""
    has_experts = any(ROUTED in name for name in tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for own, usual in EXPERTS.items():
            name = name.replace(ROUTED + own, f".mlp.{usual}")
        if BESIDE not in name:
            found[name] = tensor
            continue
        layer, _, own = name.partition(BESIDE)
        mlp = f"{layer}.mlp.{SHARED}." if has_experts else f"{layer}.mlp."
        if own == "input_linear.weight" and len(tensor.shape) == 2 and tensor.shape[0] % 2 == 0:
            shape, size = (tensor.shape[0] // 2, tensor.shape[1]), tensor.size // 2
            for number, part in enumerate(("gate_proj", "up_proj")):
                start = tensor.offset + number * size
                found[f"{mlp}{part}.weight"] = Tensor(tensor.file, tensor.dtype, shape, start, size)
        else:
            found[mlp + own.replace("output_linear", "down_proj")] = tensor
    return unstacked_rows(found)


GRANITE_MOE = Family(
    "granitemoe",
    ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", SWA),
    read,
    dense_tensors,
    usual_name=in_causal,
    rearrange=rearranged,
)
