"""What a family of models is to a checkpoint: how its config is read, and which tensors it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workers.checkpoints.experts import number_of
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.shares import Share
from workers.checkpoints.vectors.stages import Pooling, Stage

Classifier = tuple[Pooling, tuple[Stage, ...]]
Sharing = Literal[
    "rows",
    "plain_rows",
    "wide_rows",
    "kv_rows",
    "full_kv_rows",
    "qkv_rows",
    "mamba_rows",
    "mamba_channels",
    "columns",
    "vocabulary",
    "none",
    "wide",
    "first",
]

NEVER_IN_BLOCKS: frozenset[Sharing] = frozenset(
    ("none", "wide", "plain_rows", "wide_rows", "mamba_channels", "first")
)


class TensorSpec(NamedTuple):
    """A tensor that a model must have, and how ranks share it.

    `rows` and `columns`: each its parts. `kv_rows`: by KV head, of which several ranks may hold the same one.
    `full_kv_rows`: the same, where layers that see all tokens have heads of their own. `qkv_rows`: `rows`,
    and below them two times `kv_rows`. `plain_rows`: `rows` that are never in blocks; `wide_rows`: such in
    float32. `mamba_rows`: of all that a layer of Mamba-2 projects, by head and by group (`Mamba`);
    `mamba_channels`: of what it convolves, never in blocks. `vocabulary`: rows, the last parts padded.
    `none`: all of it on every rank. `wide`: the same, in float32. `first`: all of it on the first rank, and
    nothing on the others.
    What an expert has is on one rank where experts stay whole, whatever is said here.
    """

    name: str
    shape: tuple[int, ...]
    sharing: Sharing

    def shape_on_rank(self, model: ModelConfig, share: Share) -> tuple[int, ...]:
        """The part that a rank holds."""
        first, *rest = self.shape
        if self.sharing == "first":
            return self.shape if share.first == 0 else (0, *rest)
        experts, number = model.experts, number_of(self.name)
        if experts is not None and number is not None and experts.whole_in(share.parts):
            return self.shape if number in experts.of(share) else (0, *rest)
        match self.sharing:
            case "none" | "wide":
                return self.shape
            case "columns":
                return first, share.of(rest[0])
            case "kv_rows":
                heads = share.kv_heads(model.num_kv_heads)
                return heads * model.head_dim, *rest
            case "full_kv_rows":
                layer = next(layer for layer in model.layers if layer.kind == "full")
                return share.kv_heads(layer.kv_heads) * layer.head_dim, *rest
            case "qkv_rows":
                heads = share.of(model.num_heads) + 2 * share.kv_heads(model.num_kv_heads)
                return heads * model.head_dim, *rest
            case "mamba_rows":
                return model.mamba.on_rank(share).projected, *rest
            case "mamba_channels":
                return model.mamba.on_rank(share).channels, *rest
        return share.of(first), *rest

    def elements_on_rank(self, model: ModelConfig, share: Share) -> int:
        """Elements of that part."""
        return math.prod(self.shape_on_rank(model, share))


MTP_HEAD = "a head that predicts several tokens at once, which `speculation: mtp` uses"


def linear(name: str, rows: int, columns: int, sharing: Sharing, bias: bool = True) -> Iterator[TensorSpec]:
    """A matrix and its bias, which is added once where ranks have columns."""
    yield TensorSpec(f"{name}.weight", (rows, columns), sharing)
    if bias:
        yield TensorSpec(f"{name}.bias", (rows,), "none" if sharing == "columns" else sharing)


def norm(name: str, size: int, bias: bool = True, sharing: Sharing = "none") -> Iterator[TensorSpec]:
    """What a norm has."""
    yield TensorSpec(f"{name}.weight", (size,), sharing)
    if bias:
        yield TensorSpec(f"{name}.bias", (size,), sharing)


def in_causal(name: str) -> str:
    """The name of a decoder's tensor where the decoder stands alone in the files, as embedders do."""
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def renaming(usual: Mapping[str, str]) -> Callable[[str], str]:
    """`in_causal`, and each of these parts of a name, in this order, as every other family calls it."""

    def usual_name(name: str) -> str:
        name = in_causal(name)
        for own, other in usual.items():
            name = name.replace(own, other)
        return name

    return usual_name


@dataclass(frozen=True, slots=True)
class Family:
    """Models whose `config.json` and tensors are read alike.

    Args:
        name: of its file here, and of its mathematics in `workers/models/`.
        architectures: names in `config.json`.
        within: names of those that have such a model in them, and what its `model_type` there may be.
        read: `config.json` to what it means; refuses what is not done, by name.
        tensors: all that are loaded.
        classifier: of models that end in one, the pooling before it and its stages.
        usual_name: how `tensors` calls what stands in files under that name.
        rearrange: tensors in files, where one of them is several.
        beside: of tensors that may be there and are not read, how their names begin, and what they are.
        mtp: tensors in files, where those of a head that predicts the token after the next
            (`ModelConfig.mtp`) have their usual names, which begin with those of the layer of that number,
            the first one behind the model's; None: no such head is understood.
        sees: those names of `within` whose towers are served, too, and which module beside this reads each.
    """

    name: str
    architectures: tuple[str, ...]
    read: Callable[[Path, Mapping[str, Any]], ModelConfig]
    tensors: Callable[[ModelConfig], Iterator[TensorSpec]]
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    usual_name: Callable[[str], str] = in_causal
    classifier: Callable[[ModelConfig, Mapping[str, Any]], Classifier] | None = None
    rearrange: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    beside: Mapping[str, str] = field(default_factory=dict)
    sees: Mapping[str, str] = field(default_factory=dict)
    mtp: Callable[[Mapping[str, Tensor], int], dict[str, Tensor]] | None = None
