"""Alibaba's GTE (https://arxiv.org/abs/2407.19669), and of its shape Snowflake's Arctic Embed M 2 and Stella
400M: Nomic's BERT with biases, but for gates and what they open, and often a stretched rope.

Its own code calls the architecture `New`, and transformers `Gte`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from msgspec.structs import replace

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families import nomic_bert
from workers.checkpoints.families.bert import bert_classifier
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import Encoder, ModelConfig
from workers.checkpoints.safetensors import Tensor

THETA = 160_000.0
PREFIXES = ("new.", "gte.")  # of a model that has a head besides
GATED = "mlp.up_gate_proj.weight"
NAMES = {
    "encoder.layer.": "encoder.layers.",
    "embeddings.LayerNorm.": f"{nomic_bert.NORM}.",
    ".attention.qkv_proj.": ".attn.Wqkv.",
    ".attention.o_proj.": ".attn.out_proj.",
    ".attn_ln.": ".norm1.",
    ".mlp_ln.": ".norm2.",
    ".mlp.down_proj.": ".mlp.fc2.",
}


class GteFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    hidden_act: str = "gelu"
    layer_norm_eps: Annotated[float, Meta(ge=0)] = 1e-12
    type_vocab_size: Annotated[int, Meta(ge=0)] = 1
    position_embedding_type: Literal["rope"] = "rope"
    layer_norm_type: Literal["layer_norm"] = "layer_norm"
    logn_attention_scale: Literal[False] = False
    logn_attention_clip1: Any = None  # of which it would be a bound
    sentence_transformers: Any = None  # read by whoever makes scores
    sbert_ce_default_activation_function: Any = None
    use_memory_efficient_attention: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A rope that transformers has made explicit is plain, and that of its own code stretched."""
    file = config.read(path, given, GteFile)
    config.refuse_other_heads(path, file)
    usual = THETA if file.architectures[0].startswith("Gte") else 10_000.0
    key = next((key for key in rope.KEYS if getattr(file, key)), rope.KEYS[0])
    said = {name: value for name, value in (getattr(file, key) or {}).items() if value is not None}
    turning = {"rope_theta": file.rope_theta or usual} | said
    file = replace(
        file,
        rms_norm_eps=file.layer_norm_eps,
        tie_word_embeddings=True,
        rope_scaling=None,
        rope_parameters=_stretched(path, key, turning, file.hidden_size // file.num_attention_heads),
    )
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        qkv_bias=True,
        output_bias=True,
        bidirectional=True,
        encoder=Encoder(token_types=file.type_vocab_size, norm_bias=True, down_bias=True),
    )


def _stretched(path: Path, key: str, turning: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """An `ntk` (https://kexue.fm/archives/9706) in words of others: a larger base, and all a bit slower."""
    if (turning.get("rope_type") or turning.get("type")) != "ntk":
        return turning
    theta, factor, others = turning["rope_theta"], turning.get("factor"), turning.keys() - {"rope_theta"}
    if more := others - {"rope_type", "type", "factor"}:
        refuse(path, f"{key}: {min(more)} is not understood")
    if not (isinstance(factor, int | float) and isinstance(theta, int | float) and 1 <= factor <= 1e6):
        refuse(path, f"{key}.factor {factor!r} of a rope_theta {theta!r} is not supported")
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_dim)}


def usual_name(name: str) -> str:
    """What Nomic's BERT calls it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for own, other in NAMES.items():
        name = name.replace(own, other)
    return name


def parts(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What gates open stands above the gates."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if not name.endswith(GATED) or len(tensor.shape) != 2 or tensor.shape[0] % 2:
            found[name] = tensor
            continue
        half, shape = tensor.size // 2, (tensor.shape[0] // 2, tensor.shape[1])
        for number, part in enumerate(("fc11", "fc12")):
            own = name.replace(GATED, f"mlp.{part}.weight")
            found[own] = Tensor(tensor.file, tensor.dtype, shape, tensor.offset + number * half, half)
    return found


GTE = Family(
    "gte",
    tuple(
        f"{kind}{ending}"
        for kind in ("New", "Gte")
        for ending in ("Model", "ForMaskedLM", "ForSequenceClassification")
    ),
    read,
    nomic_bert.tensors,
    usual_name=usual_name,
    rearrange=parts,
    classifier=bert_classifier,
)
