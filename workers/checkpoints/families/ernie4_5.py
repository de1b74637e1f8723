"""ERNIE 4.5: a Llama whose neighbouring dimensions turn together; some have experts.

Of several best experts a softmax over all gives the weights, and a correction of each expert counts for the
choice alone. The layers that guess further ahead are not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor

DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True}
DENSE = DEFAULTS | {"num_key_value_heads": 2, "head_dim": 128}
EXPERTS = DEFAULTS | {"num_key_value_heads": 4}
CORRECTION, USUAL_CORRECTION = (f".mlp.{name}.e_score_correction_bias" for name in ("moe_statics", "gate"))
LEAST = 1e-12  # sum of weights that they are divided by
AHEAD = "layers that guess further ahead, which are not loaded"


class Ernie4_5File(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    use_bias: bool | None = False
    use_rmsnorm: Literal[True] = True


class Ernie4_5MoeFile(Ernie4_5File, kw_only=True):
    """The keys of one with experts."""

    moe_num_experts: Size = 64
    moe_k: Size = 6
    moe_intermediate_size: Size = 1536
    moe_num_shared_experts: Annotated[int, Meta(ge=0)] = 2
    moe_layer_start_index: Annotated[int, Meta(ge=0)] = 1
    moe_layer_end_index: Annotated[int, Meta(ge=-1)] = -1  # the last one; -1: that of the model
    moe_layer_interval: Size = 1
    moe_norm_min: float = LEAST
    moe_gate: Literal["topk"] = "topk"
    moe_gate_act: Literal["softmax"] = "softmax"
    moe_use_aux_free: Literal[True] = True
    # of training
    moe_capacity: Any = None
    moe_aux_loss_lambda: Any = None
    moe_orthogonal_loss_lambda: Any = None
    moe_z_loss_lambda: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """`use_bias` is of all projections; no layer has a window."""
    file = config.read(path, DENSE | dict(given), Ernie4_5File)
    return _model(path, msgspec.structs.replace(file, attention_bias=bool(file.use_bias)))


def read_moe(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Experts are in every so many'th layer from one to another."""
    file = config.read(path, EXPERTS | dict(given), Ernie4_5MoeFile)
    if file.use_bias:
        refuse(path, "use_bias is not supported beside experts")
    if file.moe_norm_min > LEAST:
        refuse(path, f"moe_norm_min {file.moe_norm_min} is not supported; up to {LEAST} is")
    count, chosen, layers = file.moe_num_experts, file.moe_k, file.num_hidden_layers
    config.refuse_above(path, file, "moe_k", "moe_num_experts")
    end = layers - 1 if file.moe_layer_end_index == -1 else min(file.moe_layer_end_index, layers - 1)
    experts = Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.moe_intermediate_size,
        layers=tuple(
            number
            for number in range(file.moe_layer_start_index, end + 1)
            if (number + 1) % file.moe_layer_interval == 0
        ),
        normalised=True,
        corrected=True,
        shared_size=file.moe_num_shared_experts * file.moe_intermediate_size,
    )
    file = msgspec.structs.replace(file, attention_bias=False)
    return _model(path, file, experts=experts if experts.layers else None)


def _model(path: Path, file: ConfigFile, **changes: Any) -> ModelConfig:
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, interleaved=True, mlp_bias=file.attention_bias, **changes)


def rearranged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the corrections where every other family has them: not as a matrix of one row."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(CORRECTION) and len(tensor.shape) == 2 and tensor.shape[0] == 1:
            name = name.replace(CORRECTION, USUAL_CORRECTION)
            tensor = Tensor(tensor.file, tensor.dtype, tensor.shape[1:], tensor.offset, tensor.size)
        found[name] = tensor
    return found


ERNIE4_5 = Family("ernie4_5", ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"), read, dense_tensors)
ERNIE4_5_MOE = Family(
    "ernie4_5_moe",
    ("Ernie4_5_MoeForCausalLM",),
    read_moe,
    dense_tensors,
    rearrange=rearranged,
    beside={"model.mtp_": AHEAD},
)
