"""AFMoE, of which Arcee's Trinity is: norms on both sides, gates behind attention, experts of which sigmoids
choose. Layers with a window have positions, the others none.
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
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.model_config import ModelConfig, Norms
from workers.checkpoints.rope import Size

DEFAULTS = {"head_dim": 128, "rms_norm_eps": 1e-5, "sliding_window": 1024}
NORMS = Norms("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")
usual_name = renaming(
    {".mlp.router.gate.": ".mlp.gate.", ".mlp.expert_bias": ".mlp.gate.e_score_correction_bias"}
)


class AfmoeFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    num_experts: Size = 64
    num_experts_per_tok: Size = 6
    num_shared_experts: Annotated[int, Meta(ge=0)] = 2
    moe_intermediate_size: Size = 1408
    num_dense_layers: Annotated[int, Meta(ge=0)] = 1  # the first ones
    route_scale: float = 1.0
    route_norm: Literal[True] = True
    score_func: Literal["sigmoid"] = "sigmoid"
    n_group: Literal[1] | None = 1
    topk_group: Literal[1] | None = 1
    num_expert_groups: Literal[1] | None = 1
    num_limited_groups: Literal[1] | None = 1
    global_attn_every_n_layers: Size = 4  # of which one sees all tokens
    mup_enabled: bool = False  # embeddings are multiplied
    # of training
    load_balance_coeff: Any = None
    use_grouped_mm: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Some layers have an MLP and the others experts; layers see all tokens by turns."""
    file = config.read(path, DEFAULTS | dict(given), AfmoeFile)
    config.refuse_above(path, file, "num_experts_per_tok", "num_experts")
    count, every = file.num_hidden_layers, file.global_attn_every_n_layers
    if file.layer_types is None:
        types = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(count)]
        file = msgspec.structs.replace(file, layer_types=types)
    windows = config.windows_of(path, file, first=0)
    experts = Experts(
        count=file.num_experts,
        chosen=file.num_experts_per_tok,
        intermediate_size=file.moe_intermediate_size,
        layers=tuple(range(file.num_dense_layers, count)),
        scoring="sigmoid",
        normalised=True,
        corrected=True,
        scale=file.route_scale,
        shared_size=file.num_shared_experts * file.moe_intermediate_size,
    )
    return config.model_config(
        path,
        file,
        windows,
        norms=NORMS,
        qk_norm="heads",
        attention_gate="apart",
        unrotated=tuple(number for number in range(count) if windows[number] is None),
        embedding_scale=file.hidden_size**0.5 if file.mup_enabled else 1.0,
        experts=experts if experts.layers else None,
    )


AFMOE = Family("afmoe", ("AfmoeForCausalLM",), read, dense_tensors, usual_name=usual_name)
