"""Mamba-2 (https://arxiv.org/abs/2405.21060): a layer that keeps one state of all tokens before.

x ─┬─ inputs, keys, queries ─ convolution ─ state space ─ × ─ norm ─ out
   ├─ steps ─ softplus ─ decay ───────────────┘           │
   └─ gates ─ SiLU ───────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention.states import Recur
from workers.checkpoints.model_config import ModelConfig
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.norm import over_rms
from workers.layers.steady import elementwise
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class Mamba2:
    """The heads of a rank, with the groups that they are of."""

    def __init__(self, name: str, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        whole, hidden = config.mamba, config.hidden_size
        self.name, self.number, self.whole, self.eps, self.exact = name, number, whole, config.norm_eps, False
        self.group, self.mine, self.my_groups = group, group.share(whole.heads), group.share_kv(whole.groups)
        mine = whole.on_rank(group.mine)
        self.sizes = (mine.inner, mine.channels, mine.heads)
        projections = [(f"{name}.in_proj", whole.projected, rows) for rows in self._regions()]
        self.projections = ColumnParallel(projections, hidden, whole.bias, empty)
        self.output = RowParallel(f"{name}.out_proj", hidden, whole.inner, whole.bias, group, empty)
        self.convolution = empty(mine.channels, whole.kernel)
        self.bias = empty(mine.channels) if whole.conv_bias else None
        self.step_bias = empty(mine.heads, dtype=torch.float32)
        self.rate = empty(mine.heads, dtype=torch.float32)  # its logarithm
        self.skip = empty(mine.heads, dtype=torch.float32)
        self.scales: Tensor | None = None
        if {*whole.scales} != {1.0}:
            regions = zip(whole.scales, self._regions(), strict=True)
            scales = torch.cat([torch.full((len(rows),), scale) for scale, rows in regions])
            self.scales = scales.to(group.device)  # float32: rounded, it would be another for a whole region
        self.norm = None if whole.norm == "none" else empty(mine.inner)

    def _regions(self) -> Iterator[range]:
        """This rank's rows of what files have one after the other: gates, inputs, keys, queries, steps."""
        mamba, end = self.whole, 0
        for count, size, mine in (
            (mamba.heads, mamba.head_dim, self.mine),
            (mamba.heads, mamba.head_dim, self.mine),
            (mamba.groups, mamba.state_dim, self.my_groups),
            (mamba.groups, mamba.state_dim, self.my_groups),
            (mamba.heads, 1, self.mine),
        ):
            yield range(end + mine.start * size, end + mine.stop * size)
            end += count * size

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.projections, self.output

    def norm_pieces(self) -> Iterator[Slice]:
        channels, heads, inner, end = self.whole.channels, self.whole.heads, self.whole.inner, 0
        for rows in [*self._regions()][1:4]:
            first, part = rows.start - inner, slice(end, end + len(rows))
            shape = channels, self.whole.kernel
            yield Slice(f"{self.name}.conv1d.weight", shape, self.convolution[part], row=first)
            if self.bias is not None:
                yield Slice(f"{self.name}.conv1d.bias", (channels,), self.bias[part], row=first)
            end += len(rows)
        for name, each in (("dt_bias", self.step_bias), ("A_log", self.rate), ("D", self.skip)):
            yield Slice(f"{self.name}.{name}", (heads,), each, row=self.mine.start)
        if self.norm is not None:
            first = self.mine.start * self.whole.head_dim
            yield Slice(f"{self.name}.norm.weight", (inner,), self.norm, row=first)

    def __call__(self, x: Tensor, recur: Recur) -> Tensor:  # [tokens, hidden]
        projected = self.projections(x)
        if self.scales is not None:
            self._scale(projected)
        gates, mixed, step = projected.split(self.sizes, dim=1)
        step = self._each(F.softplus, step.float() + self.step_bias).clamp_(*self.whole.limits)
        decay = -self.rate.exp() * step
        y = recur(self.number, mixed, self.convolution, decay, step, self.bias, self.skip).flatten(1)
        if self.whole.norm == "before_gates":
            y = self._normed(y)
        y = y.mul_(self._each(F.silu, gates.float()))
        if self.whole.norm == "behind_gates":
            y = self._normed(y)
        return self.output(y.to(x.dtype))

    def _scale(self, projected: Tensor) -> None:
        """In float32, and rounded once: what a processor would make copies for, unless it is a number."""
        if projected.device.type != "cpu" or projected.dtype == torch.float32:
            projected.mul_(self.scales)
            return
        parts = projected.split([len(rows) for rows in self._regions()], dim=1)
        for part, scale in zip(parts, self.whole.scales, strict=True):
            part.mul_(scale)

    def _normed(self, y: Tensor) -> Tensor:  # [tokens, inner] float32; changed in place
        """Each group over its root mean square, of which other ranks may have heads as well."""
        grouped = y.unflatten(1, (len(self.my_groups), -1))
        if (size := self.whole.inner // self.whole.groups) == grouped.shape[2]:
            over = over_rms(grouped, self.eps)
        else:
            squares = y.new_zeros(len(y), self.whole.groups)
            squares[:, self.my_groups.start] = grouped.square().sum(dim=(1, 2))
            mine = self.group.all_reduce(squares)[:, self.my_groups.start]
            over = mine.div(size).add_(self.eps).rsqrt_()[:, None, None]
        return grouped.mul_(over).flatten(1).mul_(self.norm)

    def _each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [tokens, columns]
        return elementwise(function, x) if self.exact else function(x)
