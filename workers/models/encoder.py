"""What encoders have in common: blocks of products, which are read, counted and made exact alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from workers.layers.linear import Linear
from workers.weights.loader import Shard, Slice, bytes_filled


class Block(Protocol):
    """One layer of an encoder."""

    exact: bool

    @property
    def linears(self) -> tuple[Linear, ...]: ...

    def norms(self) -> Iterator[Slice]:
        """What is read of its norms."""
        ...


class Encoder:
    """An encoder of such `blocks`, which a family gives what stands before and behind them."""

    blocks: Sequence[Block]

    def tables(self) -> Iterable[Slice]:
        """What is read besides the blocks."""
        raise NotImplementedError

    def norm(self, x: Tensor) -> Tensor:
        """Of hidden states, the last one; nothing where blocks end with theirs."""
        return x

    def parts(self) -> Iterator[Shard]:
        """What this rank reads from the checkpoint, and what then becomes of it."""
        yield Shard([*self.tables()])
        for block in self.blocks:
            yield Shard([*block.norms()])
            for linear in block.linears:
                yield Shard([*linear.pieces()], linear.pack)

    def make_exact(self) -> None:
        """From now on compute each token as if it were alone. Called when the weights are in place."""
        known: dict[object, list[int]] = {}
        for block in self.blocks:
            block.exact = True
            for linear in block.linears:
                linear.make_exact(known)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are to be read, in the type that they are kept in."""
        return bytes_filled(self.parts())
