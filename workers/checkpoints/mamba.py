"""Layers of Mamba-2 in a checkpoint: their tensors, what they keep, and what files say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf, isfinite
from pathlib import Path
from typing import Any

from workers.checkpoints.family import TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import Mamba, ModelConfig

Limit = float | dict[str, str]
KINDS_KEYS = ("layer_types", "layers_block_type")  # of which files have either
NAMED = {"__float__": "Infinity"}  # as transformers writes it, for JSON has no such number


def tensors(model: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    """Those of a layer, under names that begin with `prefix`.

    Ranks have equal numbers of heads, and the groups of these. The convolution is never in blocks: it is a
    thousandth of the layer, and all that a state keeps has gone through it.
    """
    mamba, hidden = model.mamba, model.hidden_size
    yield TensorSpec(prefix + "in_proj.weight", (mamba.projected, hidden), "mamba_rows")
    yield TensorSpec(prefix + "conv1d.weight", (mamba.channels, mamba.kernel), "mamba_channels")
    if mamba.conv_bias:
        yield TensorSpec(prefix + "conv1d.bias", (mamba.channels,), "mamba_channels")
    for name in ("dt_bias", "A_log", "D"):
        yield TensorSpec(prefix + name, (mamba.heads,), "wide_rows")
    if mamba.norm != "none":
        yield TensorSpec(prefix + "norm.weight", (mamba.inner,), "plain_rows")
    yield TensorSpec(prefix + "out_proj.weight", (hidden, mamba.inner), "columns")
    if mamba.bias:
        yield TensorSpec(prefix + "in_proj.bias", (mamba.projected,), "mamba_rows")
        yield TensorSpec(prefix + "out_proj.bias", (hidden,), "none")


def layer(mamba: Mamba) -> Layer:
    """What one keeps."""
    of_group = 2 * (mamba.kernel - 1) * mamba.state_dim
    spread = mamba.state_size - mamba.groups * of_group
    return Layer("state", state_size=spread, state_groups=mamba.groups, group_size=of_group)


def checked(path: Path, mamba: Mamba) -> Mamba:
    """The same.

    Raises:
        CortexError: groups do not divide its heads, or there is nothing that it convolves.
    """
    if mamba.heads % mamba.groups:
        refuse(path, f"{mamba.groups} groups do not divide {mamba.heads} heads of Mamba-2")
    if mamba.kernel < 2:
        refuse(path, "a convolution over 1 token is not supported: it sees the tokens before")
    return mamba


def of_heads(path: Path, file: Any, inner: int, **more: Any) -> Mamba:
    """What the keys say that begin with `mamba_`, of Granite's and Falcon's files.

    Args:
        inner: elements of all heads.
        more: what else the family says of it.
    """
    heads = file.mamba_n_heads
    if file.hidden_act not in ("silu", "swish"):
        refuse(path, f"hidden_act {file.hidden_act} is not supported; there is silu")
    if inner % heads:
        refuse(path, f"{heads} heads of Mamba-2 do not divide {inner} elements")
    if file.mamba_d_head not in (None, "auto", inner // heads):
        refuse(
            path,
            f"mamba_d_head {file.mamba_d_head} is not supported: {heads} heads share {inner} elements",
        )
    found = Mamba(
        heads=heads,
        head_dim=inner // heads,
        groups=file.mamba_n_groups,
        state_dim=file.mamba_d_state,
        kernel=file.mamba_d_conv,
        conv_bias=file.mamba_conv_bias,
        bias=file.mamba_proj_bias,
        limits=limits(path, "time_step_limit", file.time_step_limit),
        **more,
    )
    return checked(path, found)


def limits(path: Path, key: str, given: list[Limit] | None) -> tuple[float, float]:
    """Of a token's step: the least and the most."""
    if given is None:
        return 0.0, inf
    found = [inf if each == NAMED else each for each in given]
    if len(found) != 2 or any(isinstance(each, dict) for each in found):
        refuse(path, f"{key} {given} is no pair of numbers")
    least, most = found
    if not (0 <= least <= most and isfinite(least)):
        refuse(path, f"{key} {given} is no pair of numbers of which the second is no less")
    return float(least), float(most)


def said_of_kinds(
    path: Path, given: Mapping[str, Any], names: Mapping[str, str], count: int | None
) -> tuple[str, list[str]]:
    """What each layer is, in the words of `names`, which says what each word of the files stands for.

    Args:
        count: of the layers; None: as many as are listed.

    Returns:
        The key that says so, and that; nothing of either: the file has no list.
    """
    first, found = "", []
    for key in KINDS_KEYS:
        if not (listed := given.get(key)):
            continue
        if (
            not isinstance(listed, list)
            or len(listed) != (count or len(listed))
            or not {*map(str, listed)} <= {*names}
        ):
            layers = "its layers" if count is None else f"{count} layers"
            refuse(path, f"{key} is no list of {', '.join(names)} for {layers}")
        kinds = [names[each] for each in listed]
        if found not in ([], kinds):
            refuse(path, f"{first} and {key} disagree on what layers are")
        first, found = first or key, kinds
    return first, found
