"""The weights of a tower: what it has, and what of a checkpoint is to be read into that."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.checkpoints.vision import PREFIX
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel
from workers.layers.norm import RMSNorm
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice


class Weights:
    """Makes the parts of a tower, all of them on one rank. Names are those of the tower's own tensors."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._empty = Empty(dtype, device)
        self._linears: list[ColumnParallel] = []
        self._norms: list[LayerNorm | RMSNorm] = []
        self._tables: list[Slice] = []

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> ColumnParallel:
        """A product."""
        return self.linears([name], rows, columns, bias)

    def linears(self, names: list[str], rows: int, columns: int, bias: bool = True) -> ColumnParallel:
        """Products of the same, as one; `rows` are those of each."""
        made = ColumnParallel(
            [(PREFIX + name, rows, range(rows)) for name in names], columns, bias, self._empty
        )
        self._linears.append(made)
        return made

    def layer_norm(self, name: str, size: int, eps: float) -> LayerNorm:
        made = LayerNorm(PREFIX + name, size, eps, self._empty)
        self._norms.append(made)
        return made

    def rms_norm(self, name: str, size: int, eps: float, offset: float = 0.0) -> RMSNorm:
        made = RMSNorm(PREFIX + name, size, eps, self._empty, offset)
        self._norms.append(made)
        return made

    def table(self, name: str, *shape: int) -> Tensor:
        """A tensor that is nothing of these; `name` is all of its name."""
        made = self._empty(*shape)
        self._tables.append(Slice(PREFIX + name, shape, made))
        return made

    def parts(self) -> Iterator[Shard]:
        """What is read from the checkpoint."""
        yield Shard([*self._tables, *(piece for norm in self._norms for piece in norm.pieces())])
        for linear in self._linears:
            yield Shard([*linear.pieces()], linear.pack)
