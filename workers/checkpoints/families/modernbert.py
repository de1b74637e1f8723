"""ModernBERT (https://arxiv.org/abs/2412.13663): an encoder with rotary positions and a gated MLP, of which
every third layer sees all of a text, and the others what is near.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from msgspec.structs import replace

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.family import Classifier, Family, TensorSpec, linear, norm
from workers.checkpoints.model_config import Encoder, ModelConfig
from workers.checkpoints.vectors.stages import Stage

WORDS, NORM, LAST_NORM = "embeddings.tok_embeddings", "embeddings.norm", "final_norm"
PREFIX = "model."  # of a model that has a head besides
DEFAULTS = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
}
THETA, NEAR_THETA = 160_000.0, 10_000.0
EVERY = 3  # layers, of which the first sees all


class ModernBertFile(ConfigFile, kw_only=True):
    """The keys of ModernBERT's `config.json`."""

    hidden_activation: str = "gelu"
    norm_eps: Annotated[float, Meta(ge=0)] = 1e-5
    norm_bias: bool = False
    local_attention: Annotated[int, Meta(ge=0)] = 128
    global_attn_every_n_layers: Annotated[int, Meta(ge=1)] = EVERY
    global_rope_theta: float = THETA
    local_rope_theta: float = NEAR_THETA
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_bias: bool = False
    classifier_activation: Literal["gelu", "relu", "tanh", "silu"] = "gelu"
    sentence_transformers: Any = None  # read by whoever makes scores
    sbert_ce_default_activation_function: Any = None
    decoder_bias: Any = None  # of a head that is not read
    deterministic_flash_attn: Any = None
    repad_logits_with_grad: Any = None
    sparse_prediction: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Of `local_attention` a token sees half before it and half behind it, and itself."""
    given = DEFAULTS | dict(given)
    far, near = rope.by_type(path, given)
    file = config.read(path, given, ModernBertFile)
    config.refuse_other_activation(path, file, "hidden_activation")
    config.refuse_other_heads(path, file)
    if file.layer_types is None:
        far_layers = range(0, file.num_hidden_layers, file.global_attn_every_n_layers)
        kinds = ["full" if layer in far_layers else "sliding" for layer in range(file.num_hidden_layers)]
        file = replace(file, layer_types=[f"{kind}_attention" for kind in kinds])
    file = replace(
        file,
        hidden_act=file.hidden_activation,
        rms_norm_eps=file.norm_eps,
        sliding_window=file.local_attention // 2 + 1,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": file.global_rope_theta} | far,
    )
    beside = replace(file, rope_parameters={"rope_theta": file.local_rope_theta} | near)
    head_dim = file.hidden_size // file.num_attention_heads
    window_rope, *_ = rope.read(path, beside, head_dim, partial=False)
    return config.model_config(
        path,
        file,
        config.windows_of(path, file, first=0),
        window_rope=window_rope,
        mlp_bias=file.mlp_bias,
        bidirectional=True,
        encoder=Encoder(norm_bias=file.norm_bias),
    )


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor that is loaded, by its name without the prefix of models with a head."""
    hidden, inner, bias = model.hidden_size, model.intermediate_size, model.encoder.norm_bias
    yield TensorSpec(f"{WORDS}.weight", (model.vocab_size, hidden), "vocabulary")
    yield from norm(NORM, hidden, bias)
    for layer in range(model.num_layers):
        prefix = f"layers.{layer}."
        if layer:
            yield from norm(f"{prefix}attn_norm", hidden, bias)
        yield from linear(f"{prefix}attn.Wqkv", 3 * hidden, hidden, "qkv_rows", model.qkv_bias)
        yield from linear(f"{prefix}attn.Wo", hidden, hidden, "columns", model.output_bias)
        yield from norm(f"{prefix}mlp_norm", hidden, bias)
        yield from linear(f"{prefix}mlp.Wi", 2 * inner, hidden, "rows", model.mlp_bias)
        yield from linear(f"{prefix}mlp.Wo", hidden, inner, "columns", model.mlp_bias)
    yield from norm(LAST_NORM, hidden, bias)


def classifier(model: ModelConfig, given: Mapping[str, Any]) -> Classifier:
    """Its head, which is that of its training, and a layer of one output."""
    hidden, norm_bias = model.hidden_size, model.encoder.norm_bias
    bias, activation = given.get("classifier_bias", False), given.get("classifier_activation", "gelu")
    head = Stage("head.dense", hidden, hidden, bias, activation, "head.norm", norm_bias)
    return given.get("classifier_pooling", "cls"), (head, Stage("classifier", hidden, 1, True))


MODERNBERT = Family(
    "modernbert",
    ("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"),
    read,
    tensors,
    usual_name=lambda name: name.removeprefix(PREFIX),
    classifier=classifier,
)
