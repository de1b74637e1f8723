"""What a checkpoint's `config.json` says about the model, checked and made explicit.

Hugging Face writes these files in two ways: rotary settings flat (`rope_theta`, `rope_scaling`) or nested
(`rope_parameters`, since transformers 5). Both end in the same `ModelConfig`. Whatever would change the
numbers and is not done here is refused, naming the key: a model that runs with a setting ignored is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from workers.checkpoints import rope
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import Activation, ModelConfig
from workers.checkpoints.rope import RopeKeys, Size

DUAL_CHUNKS = "dual_chunk_attention_config"
LayerCount = Annotated[int, msgspec.Meta(ge=1, le=10_000)]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


class ConfigFile(RopeKeys, frozen=True, kw_only=True):
    """The keys of `config.json` that every family understands. What is left out, a family fills in; one with
    keys of its own has a struct of its own."""

    architectures: list[str]
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0)] = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    max_window_layers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    compression_config: dict[str, Any] | None = None
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None  # since transformers 5; before, it was torch_dtype
    torch_dtype: str | None = None


# Keys without a bearing on the numbers that this engine computes.
_HARMLESS = """
    _name_or_path architectures auto_map bos_token_id cache_implementation chunk_size_feed_forward
    finetuning_task gradient_checkpointing id2label is_decoder is_encoder_decoder label2id max_length
    model_type name_or_path output_attentions output_hidden_states output_router_logits pad_token_id
    prefix pretraining_tp problem_type pruned_heads return_dict sep_token_id task_specific_params
    tie_encoder_decoder torchscript transformers_version unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())
_HOW_NOT_WHAT = re.compile(r"dropout|pdrop|implementation|flash|initializer|fused")
_CHANGES_NUMBERS = re.compile(
    r"scal(e|ing)|multiplier|soft_?cap|clip|norm|rope|rotary|alibi|window|attn|attention|expert|moe|bias"
    r"|residual|mup|sink|lora|adapter|causal|parallel|logit|activation|embedding"
)
_NEUTRAL = (None, False, 0, 1, "", [], {})  # 0.0 and 1.0 are equal to these


File = TypeVar("File", bound=ConfigFile)


def read(path: Path, given: Mapping[str, Any], kind: type[File] = ConfigFile) -> File:
    """The keys of `config.json` that are understood, from all that are in it.

    Args:
        kind: what a family understands.

    Raises:
        CortexError: a key is missing or has the wrong type, or one that is not understood may change numbers.
    """
    try:
        file = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        refuse(path, str(error))
    refuse_unknown(path, given, kind)
    return file


def refuse_unknown(
    path: Path, given: Mapping[str, Any], kind: type[msgspec.Struct], within: str = ""
) -> None:
    """Refuse a key of `given` that is none of `kind`, and may change numbers.

    Args:
        within: what stands before its name in what is said.
    """
    for key, value in given.items():
        known = key in HARMLESS or key in kind.__struct_encode_fields__
        if not known and sounds_as_if_it_mattered(key) and not is_neutral(value):
            refuse(path, f"{within}{key} {value} is not understood, and may change what the model computes")


def refuse_above(path: Path, file: ConfigFile, key: str, limit: str) -> None:
    """Refuse a key of `file` that says more than `limit`, another of its keys, allows."""
    value, most = getattr(file, key), getattr(file, limit)
    if value > most:
        refuse(path, f"{key} {value} is above {limit}, which is {most}")


def refuse_other_activation(path: Path, file: ConfigFile, key: str) -> None:
    """Refuse an activation that there is not, in the key of `file` that asks for one."""
    if (name := getattr(file, key)) not in (None, *ACTIVATIONS):
        refuse(path, f"{key} {name} is not supported; there are {', '.join(ACTIVATIONS)}")


def refuse_other_heads(path: Path, file: ConfigFile) -> None:
    """Refuse heads that are not those of an encoder, which share all of `hidden_size` equally."""
    heads = file.num_attention_heads
    if file.hidden_size % heads:
        refuse(path, f"{heads} heads do not divide a hidden_size of {file.hidden_size}")
    for key, usual in (("head_dim", file.hidden_size // heads), ("num_key_value_heads", heads)):
        if (value := getattr(file, key)) not in (None, usual):
            refuse(path, f"{key} {value} is not supported: an encoder of this kind has {usual}")


def notes(given: Mapping[str, Any]) -> list[str]:
    """What stands there and is not followed, for whoever serves the model."""
    turning = next((given[key] for key in rope.KEYS if given.get(key)), {})
    kind = turning.get("rope_type") or turning.get("type")
    found = []
    if kind == rope.PLAIN_UP_TO_CONTEXT and not turning.get("alpha"):  # which is another base, and followed
        found.append(
            "config.json: the rope is dynamic, which up to the context that is served is the plain one"
        )
    if given.get(DUAL_CHUNKS):
        found.append(f"config.json: {DUAL_CHUNKS} is followed up to where attention is the plain one")
    return found


def sounds_as_if_it_mattered(key: str) -> bool:
    """Whether a key has the name of one that changes numbers."""
    return _CHANGES_NUMBERS.search(key) is not None and _HOW_NOT_WHAT.search(key) is None


def is_neutral(value: Any) -> bool:
    """Whether that is what such a key has where it changes nothing, most often."""
    return value is not True and value in _NEUTRAL


def model_config(
    path: Path, file: ConfigFile, windows: list[int | None], *, partial: bool = False, **changes: Any
) -> ModelConfig:
    """What `file` says of a dense decoder whose missing keys its family has filled in.

    Args:
        path: of the file, for the refusal.
        windows: tokens that each layer sees; None: all of them.
        partial: whether a part of a head may be what turns.
        changes: of the result, in what a family is another.

    Raises:
        CortexError: it asks for something that is not done here.
    """
    num_kv_heads = file.num_key_value_heads or file.num_attention_heads
    head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
    refuse_other_activation(path, file, "hidden_act")
    if file.num_attention_heads % num_kv_heads:
        refuse(path, f"num_key_value_heads {num_kv_heads} does not divide {file.num_attention_heads} heads")
    if head_dim < 2 or head_dim % 2:
        refuse(path, f"head_dim {head_dim} is not supported: heads have an even size")
    rotary_dim = rotary_dim_of(path, file, head_dim) if partial else head_dim
    positions, context_length, context_limit = rope.read(path, file, rotary_dim, partial=partial)
    layers = tuple(
        Layer("full", num_kv_heads, head_dim)
        # a window that no layer could tell from seeing all, but for the positions that it may have
        if window is None or (window >= context_limit and "window_rope" not in changes)
        else Layer("window", num_kv_heads, head_dim, window)
        for window in windows
    )
    config = ModelConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_layers=file.num_hidden_layers,
        num_heads=file.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=file.rms_norm_eps,
        activation=ACTIVATIONS[file.hidden_act],
        rope=positions,
        tied_head=file.tie_word_embeddings,
        qkv_bias=file.attention_bias,
        output_bias=file.attention_bias,
        mlp_bias=False,
        context_length=context_length,
        context_limit=context_limit,
        layers=layers,
        rotary_dim=rotary_dim,
    )
    return msgspec.structs.replace(config, **changes)


def rotary_dim_of(path: Path, file: RopeKeys, head_dim: int) -> int:
    """Dimensions of a head that turn, where that may be a part of it."""
    share = rope.rotary_share(file)
    is_share = isinstance(share, int | float) and 0 <= share <= 1
    rotary_dim = int(head_dim * share) if is_share else 0
    if rotary_dim < 2 or rotary_dim % 2:
        refuse(path, f"partial_rotary_factor {share} of a head of {head_dim} is not supported")
    return rotary_dim


def windows_of(path: Path, file: ConfigFile, *, first: int) -> list[int | None]:
    """The window of each layer where `use_sliding_window` or `layer_types` asks for some.

    Args:
        first: the first layer with a window, where `layer_types` does not list them.
    """
    count = file.num_hidden_layers
    types = file.layer_types
    if types is None:
        windowed = [file.use_sliding_window and number >= first for number in range(count)]
    else:
        if len(types) != count:
            refuse(path, f"layer_types has {len(types)} entries, and there are {count} layers")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                refuse(path, f"layer_types: {kind} is not supported")
        windowed = [kind == "sliding_attention" for kind in types]
    if any(windowed) and file.sliding_window is None:
        refuse(path, "sliding_window is missing, and some layers have one")
    return [file.sliding_window if each else None for each in windowed]


def unrotated_layers(path: Path, listed: list[int] | None, every: int, count: int) -> tuple[int, ...]:
    """The layers without positions, as `no_rope_layers` lists them: 1 where one has positions.

    Args:
        listed: of each layer, and maybe more; None: every so many'th has none.
        count: of layers.
    """
    rotated = [int((number + 1) % every != 0) for number in range(count)] if listed is None else listed
    if len(rotated) < count or not {*rotated} <= {0, 1}:
        refuse(path, f"no_rope_layers is no list of 0 and 1 for {count} layers")
    return tuple(number for number in range(count) if not rotated[number])
