"""Gated DeltaNet (https://arxiv.org/abs/2412.06464): a layer that keeps one state of all tokens before.

x ─┬─ qkv ─ convolution ─ delta rule ─ norm ─ × ─ out
   ├─ a, b ─ decay, beta ─┘                  │
   └─ z ─────────────────────────── SiLU ────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention.states import Recur
from workers.checkpoints.model_config import DeltaNet, ModelConfig
from workers.kernels import fused
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.norm import over_rms
from workers.layers.steady import elementwise
from workers.parallel import RankGroup
from workers.weights.blocks import Blocks, Empty
from workers.weights.loader import Slice

Region = tuple[str, int, range]  # a tensor, its rows, and some of them


class GatedDeltaNet:
    """The key heads of a rank, with their value heads."""

    def __init__(self, name: str, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        whole, hidden = config.delta, config.hidden_size
        self.name, self.number, self.whole, self.exact = name, number, whole, False
        self.eps = config.norm_eps if whole.norm_eps is None else whole.norm_eps
        self.mine, self.mine_values = group.share(whole.key_heads), group.share(whole.value_heads)
        self.delta = mine = whole.on_rank(group.mine)
        self.sizes = (mine.channels, mine.value_heads * mine.value_dim, mine.value_heads, mine.value_heads)
        self.projections = ColumnParallel(
            [*self._grouped()] if whole.grouped else [*self._one_by_one()], hidden, False, empty
        )
        columns = whole.value_heads * whole.value_dim
        output = partial(Tiled, whole) if whole.tiled else RowParallel
        self.output: RowParallel = output(f"{name}.out_proj", hidden, columns, False, group, empty)
        self.convolution = empty(mine.channels, whole.kernel)
        self.step_bias = empty(mine.value_heads, dtype=torch.float32)
        self.rate = empty(mine.value_heads, dtype=torch.float32)  # its logarithm
        self.norm = empty(whole.value_dim)

    def _regions(self, together: str, apart: str) -> Iterator[Region]:
        """This rank's rows of all queries, keys and values, of which the files have one after the other; or
        each under a name of its own."""
        delta, end = self.whole, 0
        for letter, heads, size, mine in (
            ("q", delta.key_heads, delta.key_dim, self.mine),
            ("k", delta.key_heads, delta.key_dim, self.mine),
            ("v", delta.value_heads, delta.value_dim, self.mine_values),
        ):
            if delta.apart:
                rows = range(mine.start * size, mine.stop * size)
                yield f"{self.name}.{letter}_{apart}", heads * size, rows
            else:
                rows = range(end + mine.start * size, end + mine.stop * size)
                yield f"{self.name}.{together}", delta.channels, rows
            end += heads * size

    def _one_by_one(self) -> Iterator[Region]:
        delta, values = self.whole, self.mine_values
        yield from self._regions("in_proj_qkv", "proj")
        size, heads = delta.value_dim, delta.value_heads
        yield f"{self.name}.in_proj_z", heads * size, range(values.start * size, values.stop * size)
        yield f"{self.name}.in_proj_b", heads, values
        yield f"{self.name}.in_proj_a", heads, values

    def _grouped(self) -> Iterator[Region]:
        """The same, where each key head has its queries, keys, values and gates together."""
        delta = self.whole
        shared = delta.value_heads // delta.key_heads

        def parts(name: str, sizes: tuple[int, ...]) -> Iterator[Region]:
            for place, size in enumerate(sizes):
                for head in self.mine:
                    start = head * sum(sizes) + sum(sizes[:place])
                    yield f"{self.name}.{name}", delta.key_heads * sum(sizes), range(start, start + size)

        values = shared * delta.value_dim
        yield from parts("in_proj_qkvz", (delta.key_dim, delta.key_dim, values, values))
        yield from parts("in_proj_ba", (shared, shared))

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.projections, self.output

    def norm_pieces(self) -> Iterator[Slice]:
        end = 0
        for name, channels, rows in self._regions("conv1d", "conv1d"):
            into, shape = self.convolution[end : end + len(rows)], (channels, self.whole.kernel)
            yield Slice(f"{name}.weight", shape, into, row=rows.start)
            end += len(rows)
        heads, first = (self.whole.value_heads,), self.mine_values.start
        yield Slice(f"{self.name}.dt_bias", heads, self.step_bias, row=first)
        yield Slice(f"{self.name}.A_log", heads, self.rate, row=first)
        yield Slice(f"{self.name}.norm.weight", tuple(self.norm.shape), self.norm)

    def __call__(self, x: Tensor, recur: Recur) -> Tensor:  # [tokens, hidden]
        mixed, gates, beta, step = self.projections(x).split(self.sizes, dim=1)
        if fused.has_triton(x.device):
            decay, beta = fused.decay_and_beta(beta, step, self.step_bias, self.rate)
            beta = self._scaled(beta)
            y = recur(self.number, mixed, self.convolution, decay, beta)
            y = fused.gated_norm(y, gates, self.norm, self.eps)
            return self.output(y)
        decay = -self.rate.exp() * self._each(F.softplus, step.float() + self.step_bias)
        beta = self._scaled(self._each(torch.sigmoid, beta.float()))
        y = recur(self.number, mixed, self.convolution, decay, beta)
        y = y.mul_(over_rms(y, self.eps)).to(x.dtype) * self.norm
        y = self._each(F.silu, gates.float()).mul_(y.flatten(1))
        return self.output(y.to(x.dtype))

    def _scaled(self, beta: Tensor) -> Tensor:  # [tokens, value heads]
        return beta if self.delta.beta_scale == 1.0 else beta.mul_(self.delta.beta_scale)

    def _each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [tokens, columns]
        return elementwise(function, x) if self.exact else function(x)


class Tiled(RowParallel):
    """What comes out, with columns in the order of `DeltaNet.tiled`; its input is in that of the heads."""

    def __init__(self, delta: DeltaNet, *args: Any) -> None:
        super().__init__(*args)
        self._delta, self._mine = delta, self.group.share(delta.key_heads)

    def _product(self, x: Tensor) -> Tensor:
        heads = x.unflatten(1, (len(self._mine), -1, self._delta.value_dim))
        return super()._product(heads.transpose(1, 2).flatten(1))

    def pieces(self) -> Iterator[Slice]:
        if self.group.size == 1:
            yield from super().pieces()
            return
        size, name = self._delta.value_dim, f"{self.name}.weight"
        width, form = len(self._mine) * size, None
        data = self.weight
        if isinstance(self.weight, Blocks):
            data, form = self.weight.data, self.weight.format
        taken = width if form is None else form.row_bytes(width)
        for tile in range(self._delta.value_heads // self._delta.key_heads):
            column = (tile * self._delta.key_heads + self._mine.start) * size
            into = data[:, tile * taken : (tile + 1) * taken]
            yield Slice(name, self.shape, into, column=column, format=form)
