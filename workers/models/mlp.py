"""The feed-forward network, gated (Shazeer 2020) or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.experts import Clamp
from workers.checkpoints.model_config import Activation, ModelConfig
from workers.kernels import fused, step
from workers.kernels.gates import Gates
from workers.layers.linear import ColumnParallel, Linear, RowParallel, RowPart
from workers.layers.steady import elementwise
from workers.layers.xielu import XIELU
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice

ACTIVATIONS: dict[Activation | Literal["sigmoid", "softplus"], Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square_(),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


class MLP:
    """`down(activation(gate(x)) * up(x))`; without gates `down(activation(up(x)))`.

    Args:
        inner: its inner size, where that is not the one of the config.
        part: leave the sum over the ranks to others.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        group: RankGroup,
        empty: Empty,
        *,
        inner: int | None = None,
        part: bool = False,
    ) -> None:
        hidden, inner = config.hidden_size, inner or config.intermediate_size
        self.activation, self.gates, self._exact = config.activation, config.gates, False
        self.scale = 1.0 if config.multipliers is None else config.multipliers.gates
        self.xielu = XIELU(f"{name}.act_fn", empty) if config.activation == "xielu" else None
        share = group.share(inner)
        projections = [(f"{name}.gate_proj", inner, share), (f"{name}.up_proj", inner, share)]
        if not config.gates:
            projections = projections[1:]
        if config.fused_gate_up:
            lower = range(inner + share.start, inner + share.stop)
            projections = [(f"{name}.gate_up_proj", 2 * inner, part) for part in (share, lower)]
        self.gate_up = ColumnParallel(projections, hidden, config.mlp_bias, empty)
        if part:
            self.down: RowPart = RowPart(f"{name}.down_proj", hidden, inner, group, empty)
        else:
            self.down = RowParallel(f"{name}.down_proj", hidden, inner, config.mlp_bias, group, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.gate_up, self.down

    @property
    def exact(self) -> bool:
        """Whether each token is computed as if it were alone."""
        return self._exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        self._exact = exact
        if self.xielu is not None:
            self.xielu.exact = exact

    def vectors(self) -> Iterator[Slice]:
        """All that is no product."""
        if self.xielu is not None:
            yield from self.xielu.pieces()

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        inner = self.gate_up.gated(x, self.activation) if self.gates and self.scale == 1.0 else None
        return self.down(self._activated(self.gate_up(x)) if inner is None else inner)

    def _activated(self, x: Tensor) -> Tensor:  # [tokens, rows of what is projected] -> [tokens, inner]
        if self.gates:
            if self.scale != 1.0:
                x[:, : x.shape[1] // 2].mul_(self.scale)
            return gated(x, self.activation, self.exact)
        return activated(x, self.activation, self.exact) if self.xielu is None else self.xielu(x)


def gated(gate_up: Tensor, name: Activation, exact: bool) -> Tensor:  # [tokens, 2 * inner] -> [tokens, inner]
    """The first half, activated, times the second; as of `activated`."""
    if name in step.ACTIVATIONS and step.takes(gate_up, gate_up.shape[-1] // 2):
        return step.gated(gate_up, name)
    if (gates := Gates.of(name)) is not None and fused.has_triton(gate_up.device):
        return fused.gated(gate_up, gates)
    gate, up = gate_up.chunk(2, dim=-1)
    return _each(lambda g, u: ACTIVATIONS[name](g) * u, exact, gate, up)


def clamped(gate_up: Tensor, clamp: Clamp, exact: bool, interleaved: bool) -> Tensor:  # as `gated`
    """Gates times what they open, as gpt-oss has it; as of `activated`.

    Args:
        interleaved: the gates are every second element, and not the first half.
    """
    if fused.has_triton(gate_up.device):
        return fused.gated(gate_up, Gates(clamp, interleaved))
    gates, others = (gate_up[:, ::2], gate_up[:, 1::2]) if interleaved else gate_up.chunk(2, dim=-1)

    def function(gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
        return (up + 1) * gate * torch.sigmoid(gate * clamp.alpha)

    return _each(function, exact, gates, others)


def activated(
    x: Tensor, name: Activation | Literal["sigmoid", "softplus"], exact: bool
) -> Tensor:  # [tokens, inner]
    """Each element, activated.

    Args:
        exact: each token to the same bits whatever stands beside it.
    """
    return _each(ACTIVATIONS[name], exact, x)


def _each(function: Callable[..., Tensor], exact: bool, *tensors: Tensor) -> Tensor:
    return elementwise(function, *tensors) if exact else function(*tensors)
