"""Nomic's BERT (https://arxiv.org/abs/2402.01613): BERT with rotary positions, a gated MLP, and no biases.

Its files write `config.json` in the words of GPT-2, and in those of BERT since transformers has the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import Encoder, ModelConfig

WORDS, TYPES, NORM = "embeddings.word_embeddings", "embeddings.token_type_embeddings", "emb_ln"
PREFIXES = ("nomic_bert.", "bert.")  # of a model that has a head besides
THETA = 1000.0
OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
GATES = {"swiglu": "silu", "geglu": "gelu"}
# What the keys in GPT-2's words must say: other models of this code are others.
ONLY: dict[str, tuple[Any, ...]] = {
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "prenorm": (False,),
    "parallel_block": (False,),
    "parallel_block_tied_norm": (False,),
    "use_rms_norm": (False, None),
    "causal": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), (False,)),
    **dict.fromkeys(("moe_every_n_layers", "num_experts", "num_shared_experts"), (0, None)),
}
# Above the positions that it was trained with the rope would turn otherwise, as the text grows longer.
STRETCHED = ("max_trained_positions", "rotary_scaling_factor")
UNREAD = ("activation_function", "reorder_and_upcast_attn", "use_flash_attn")


class NomicBertFile(ConfigFile, kw_only=True):
    """The keys of its `config.json`, in BERT's words."""

    layer_norm_eps: Annotated[float, Meta(ge=0)] = 1e-12
    type_vocab_size: Annotated[int, Meta(ge=0)] = 2


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Contexts beyond those of its training, in which its own code stretches the rope, are not served."""
    file = config.read(path, _in_words_of_bert(path, given), NomicBertFile)
    config.refuse_other_heads(path, file)
    theta = file.rope_theta or THETA
    file = replace(
        file,
        rms_norm_eps=file.layer_norm_eps,
        tie_word_embeddings=True,
        rope_theta=theta,
        rope_parameters={"rope_theta": theta} | (file.rope_parameters or {}),
    )
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        bidirectional=True,
        encoder=Encoder(token_types=file.type_vocab_size, norm_bias=True),
    )


def _in_words_of_bert(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(given)
    if "n_embd" not in given:
        return given
    for key, known in ONLY.items():
        if key in given and (value := given.pop(key)) not in known:
            refuse(path, f"{key} {value} is not supported; {known[0]} is")
    if (name := given.get("activation_function")) not in GATES:
        refuse(path, f"activation_function {name} is not supported; there are {', '.join(GATES)}")
    trained = given.get("max_trained_positions") or given.get("n_positions")
    for old, new in OLD_NAMES.items():
        if old in given:
            given[new] = given.pop(old)
    if isinstance(trained, int) and isinstance(given.get("max_position_embeddings"), int):
        given["max_position_embeddings"] = min(trained, given["max_position_embeddings"])
    given["hidden_act"] = GATES[name]
    for key in (*STRETCHED, *UNREAD):
        given.pop(key, None)
    return given


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor that is loaded, by its name without the prefix of models with a head."""
    hidden, inner = model.hidden_size, model.intermediate_size
    yield TensorSpec(f"{WORDS}.weight", (model.vocab_size, hidden), "vocabulary")
    if model.encoder.token_types:
        yield TensorSpec(f"{TYPES}.weight", (model.encoder.token_types, hidden), "none")
    yield from _norm(NORM, hidden)
    for layer in range(model.num_layers):
        prefix = f"encoder.layers.{layer}."
        yield from _linear(f"{prefix}attn.Wqkv", 3 * hidden, hidden, "qkv_rows", model.qkv_bias)
        yield from _linear(f"{prefix}attn.out_proj", hidden, hidden, "columns", model.output_bias)
        yield from _norm(f"{prefix}norm1", hidden)
        for name in ("fc11", "fc12"):
            yield from _linear(f"{prefix}mlp.{name}", inner, hidden, "rows", False)
        yield from _linear(f"{prefix}mlp.fc2", hidden, inner, "columns", model.encoder.down_bias)
        yield from _norm(f"{prefix}norm2", hidden)


def usual_name(name: str) -> str:
    """The name of a tensor as a model that stands alone has it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _linear(name: str, rows: int, columns: int, sharing: str, bias: bool) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (rows, columns), sharing)
    if bias:
        yield TensorSpec(f"{name}.bias", (rows,), "none" if sharing == "columns" else sharing)


def _norm(name: str, size: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (size,), "none")
    yield TensorSpec(f"{name}.bias", (size,), "none")


NOMIC_BERT = Family(
    "nomic_bert",
    ("NomicBertModel", "NomicBertForMaskedLM", "NomicBertForPreTraining"),
    read,
    tensors,
    usual_name=usual_name,
)
