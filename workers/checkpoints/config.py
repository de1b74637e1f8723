"""What a checkpoint's `config.json` says about the model, checked and made explicit.

Hugging Face writes these files in two ways: rotary settings flat (`rope_theta`, `rope_scaling`) or nested
(`rope_parameters`, since transformers 5). Both end in the same `ModelConfig`. Whatever would change the
numbers and is not done here is refused, naming the key: a model that runs with a setting ignored is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from ipc.errors import Code, CortexError

ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM")


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding: which frequencies the positions turn with."""

    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    # llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    # yarn
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder of the Llama family. Qwen3 is a Llama whose queries and keys are normalised per head."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    tied_head: bool  # the output head is the token embedding
    attention_bias: bool
    mlp_bias: bool
    qk_norm: bool

    def check_ranks(self, world_size: int) -> None:
        """Refuse a number of ranks that does not divide the model.

        Raises:
            CortexError: naming the size that does not divide.
        """
        sizes = {"num_attention_heads": self.num_heads, "intermediate_size": self.intermediate_size}
        # with fewer key-value heads than ranks, each head is held by several ranks
        sizes["num_key_value_heads"] = max(self.num_kv_heads, world_size)
        for key, size in sizes.items():
            if size % world_size:
                raise _refused(f"{key} {size} does not divide over {world_size} ranks")
        if world_size > self.num_kv_heads and world_size % self.num_kv_heads:
            raise _refused(f"{world_size} ranks cannot share num_key_value_heads {self.num_kv_heads} evenly")


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of `config.json` that we look at, with the defaults that transformers gives them."""

    architectures: list[str]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 0
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    use_sliding_window: bool = False
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None


def read_config(folder: str | Path) -> ModelConfig:
    """Read `config.json` in `folder`.

    Raises:
        CortexError: it is missing or no valid JSON, a key has the wrong type, or it asks for something that
            is not done here.
    """
    path = Path(folder) / "config.json"
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise _refused(f"{path}: {error}") from error
    try:
        return _understand(file)
    except CortexError as error:
        raise _refused(f"{path}: {error.message}") from error


def _understand(file: _File) -> ModelConfig:
    if not set(file.architectures) & set(ARCHITECTURES):
        raise _refused(f"architectures {file.architectures}: known are {', '.join(ARCHITECTURES)}")
    qwen3 = "Qwen3ForCausalLM" in file.architectures
    full_attention: Callable[[str], bool] = "full_attention".__eq__
    _only(file.hidden_act == "silu", "hidden_act", file.hidden_act)
    _only(not file.use_sliding_window, "use_sliding_window", True)
    _only(all(map(full_attention, file.layer_types or [])), "layer_types", file.layer_types)
    _only(file.partial_rotary_factor == 1.0, "partial_rotary_factor", file.partial_rotary_factor)
    _only(not file.quantization_config, "quantization_config", file.quantization_config)
    num_kv_heads = file.num_key_value_heads or file.num_attention_heads
    head_dim = file.head_dim or (128 if qwen3 else file.hidden_size // file.num_attention_heads)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        _only(getattr(file, key) > 0, key, getattr(file, key))
    _only(file.num_attention_heads % num_kv_heads == 0, "num_key_value_heads", num_kv_heads)
    _only(head_dim > 0 and head_dim % 2 == 0, "head_dim", head_dim)
    return ModelConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_layers=file.num_hidden_layers,
        num_heads=file.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=file.rms_norm_eps,
        rope=_rope(file),
        tied_head=file.tie_word_embeddings,
        attention_bias=file.attention_bias,
        mlp_bias=file.mlp_bias and not qwen3,  # Qwen3 has none, whatever the file says
        qk_norm=qwen3,
    )


def _rope(file: _File) -> Rope:
    """The rotary settings, from wherever they stand."""
    key = "rope_parameters" if file.rope_parameters else "rope_scaling"
    given = dict(file.rope_parameters or file.rope_scaling or {})
    given.setdefault("rope_type", given.pop("type", "default"))  # `type`: files from before 2024
    if given.get("rope_theta") is None:
        given["rope_theta"] = file.rope_theta or 10_000.0
    _only(given.pop("partial_rotary_factor", 1.0) == 1.0, f"{key}.partial_rotary_factor", "other than 1")
    if given["rope_type"] in ("llama3", "yarn") and given.get("original_max_position_embeddings") is None:
        given["original_max_position_embeddings"] = file.max_position_embeddings
    if given["rope_type"] != "default" and given.get("factor") is None:
        raise _refused(f"{key}.factor is missing")
    try:
        rope = msgspec.convert(given, Rope)
    except msgspec.ValidationError as error:
        raise _refused(f"{key}: {error}") from error
    if rope.rope_type != "default":
        _only(rope.factor >= 1.0, f"{key}.factor", rope.factor)
    if rope.rope_type in ("llama3", "yarn"):
        original = rope.original_max_position_embeddings
        _only(original > 0, f"{key}.original_max_position_embeddings", original)
    if rope.rope_type == "llama3":
        _only(rope.high_freq_factor > rope.low_freq_factor, f"{key}.high_freq_factor", rope.high_freq_factor)
    return rope


def _only(supported: bool, key: str, value: object) -> None:
    if not supported:
        raise _refused(f"{key} {value} is not supported")


def _refused(message: str) -> CortexError:
    return CortexError(Code.MODEL_LOAD_FAILED, message)
