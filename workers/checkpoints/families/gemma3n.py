"""Gemma 3n, the text models (E2B, E4B): a token has several predictions, of which each layer computes one.

They have an input of each token into every layer, and upper layers that read the keys and values of lower
ones, as the small Gemma 4. In the first layers most gates are closed; the MLPs of layers may differ, where a
model was cut out of a larger one (MatFormer, https://arxiv.org/abs/2310.07707).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.gemma import GELU, NORMS, Positive, two_ropes
from workers.checkpoints.families.gemma4 import common_tensors
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import AltUp, ModelConfig, PerLayer
from workers.checkpoints.rope import Size

# Files leave out what is as in the configuration class of transformers.
DEFAULTS = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": GELU,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "sliding_window": 512,
}
PATTERN = 5  # every fifth layer sees all tokens
SPARSE_LAYERS, SPARSITY = 10, 0.95  # of models that have more, where nothing is said
# made of a token's embedding, and from which what goes out is made, but for the first prediction
SPREAD, GATHERED = "model.altup_projections", "model.altup_unembed_projections"
# of a layer
ROUTER, ROUTER_NORM = "altup.modality_router", "altup.router_norm"
PREDICTING, CORRECTING = "altup.prediction_coefs", "altup.correction_coefs"
SCALE = "altup.correct_output_scale"
LEFT, RIGHT, LAUREL_NORM = "laurel.linear_left", "laurel.linear_right", "laurel.post_laurel_norm"

SENSES = "of what sees and hears, which is not served: it takes text"
TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
SEEING = "Gemma3nForConditionalGeneration"

Share = Annotated[float, Meta(ge=0, lt=1)]


class Gemma3nFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    intermediate_size: Size | list[Size]
    hidden_activation: str | None = None
    final_logit_softcapping: Positive | None = 30.0
    rope_local_base_freq: float | None = None
    vocab_size_per_layer_input: Size = 262_144
    hidden_size_per_layer_input: Size = 256
    num_kv_shared_layers: Annotated[int, Meta(ge=0)] = 15
    altup_num_inputs: Annotated[int, Meta(ge=2, le=64)] = 4
    altup_active_idx: Annotated[int, Meta(ge=0)] = 0
    altup_correct_scale: bool = True
    laurel_rank: Size = 64
    activation_sparsity_pattern: list[Share] | None = None
    # of training, and what nobody reads: scores are not scaled
    altup_coef_clip: Any = None
    altup_lr_multiplier: Any = None
    query_pre_attn_scalar: Any = None


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """What every rank computes for itself: all that makes predictions, and corrects them."""
    yield from common_tensors(model)
    hidden, altup = model.hidden_size, model.altup
    count = altup.predictions
    for number in range(count - 1):
        for name in (SPREAD, GATHERED):
            yield TensorSpec(f"{name}.{number}.weight", (hidden, hidden), "none")
    shapes = {
        f"{ROUTER}.weight": (count, hidden),
        f"{ROUTER_NORM}.weight": (hidden,),
        f"{PREDICTING}.weight": (count * count, count),
        f"{CORRECTING}.weight": (count, count),
        SCALE: (hidden,),
        f"{LEFT}.weight": (altup.rank, hidden),
        f"{RIGHT}.weight": (hidden, altup.rank),
        f"{LAUREL_NORM}.weight": (hidden,),
    }
    for number in range(model.num_layers):
        for name, shape in shapes.items():
            yield TensorSpec(f"model.layers.{number}.{name}", shape, "none")


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Two ropes, as of Gemma 3."""
    given = DEFAULTS | dict(given)
    whole, local = rope.by_type(path, given)
    file = config.read(path, given, Gemma3nFile)
    config.refuse_other_activation(path, file, "hidden_activation")
    count = file.num_hidden_layers
    inner = file.intermediate_size
    sizes = inner if isinstance(inner, list) else [inner] * count
    sparsity = file.activation_sparsity_pattern
    if sparsity is None:
        sparse = SPARSE_LAYERS if count > SPARSE_LAYERS else 0
        sparsity = [SPARSITY] * sparse + [0.0] * (count - sparse)
    for key, each in (("intermediate_size", sizes), ("activation_sparsity_pattern", sparsity)):
        if len(each) != count:
            refuse(path, f"{key} has {len(each)} entries, and there are {count} layers")
    if file.altup_active_idx >= file.altup_num_inputs:
        refuse(path, f"altup_active_idx {file.altup_active_idx} is none of {file.altup_num_inputs}")
    types = file.layer_types or [
        "sliding_attention" if (number + 1) % PATTERN else "full_attention" for number in range(count)
    ]
    file = msgspec.structs.replace(
        file,
        intermediate_size=max(sizes),
        hidden_act=file.hidden_activation or file.hidden_act,
        layer_types=types,
    )
    file, window_rope = two_ropes(path, file, whole, local)
    model = config.model_config(
        path,
        file,
        config.windows_of(path, file, first=0),
        norms=NORMS,
        qk_norm="with_values",
        window_rope=window_rope,
        embedding_scale=file.hidden_size**0.5,
        attention_scale=1.0,
        logit_cap=file.final_logit_softcapping,
        inner_of=tuple(sizes) if len(set(sizes)) > 1 else (),
        sparsity=tuple(sparsity),
        per_layer=PerLayer(file.vocab_size_per_layer_input, file.hidden_size_per_layer_input),
        altup=AltUp(file.altup_num_inputs, file.altup_active_idx, file.laurel_rank, file.altup_correct_scale),
    )
    return msgspec.structs.replace(model, layers=_sharing(path, model.layers, file.num_kv_shared_layers))


def _sharing(path: Path, layers: tuple[Layer, ...], shared: int) -> tuple[Layer, ...]:
    """So many at the end read the keys and values of the last own ones of their kind."""
    own = layers[: max(0, len(layers) - shared)]
    last = {layer.kind: number for number, layer in enumerate(own)}
    for layer in layers:
        if layer.kind not in last:
            refuse(path, f"num_kv_shared_layers {shared} leaves no layer with keys of a {layer.kind}")
    reading = [msgspec.structs.replace(each, keys_of=last[each.kind]) for each in layers[len(own) :]]
    return (*own, *reading)


GEMMA3N = Family(
    "gemma3n",
    ("Gemma3nForCausalLM",),
    read,
    tensors,
    within={SEEING: ("gemma3n_text",)},
    beside=dict.fromkeys((*TOWERS, *(f"model.{name}" for name in TOWERS)), SENSES),
)
