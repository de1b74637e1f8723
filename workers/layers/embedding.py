"""The two ends of the vocabulary: token embedding and output head, both with a slice of it on every rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from workers.kernels import dense
from workers.layers.linear import Linear
from workers.parallel import RankGroup
from workers.weights.blocks import Blocks, Empty, Weight
from workers.weights.loader import Slice


class VocabularySlice:
    """Which tokens a rank holds. The last slices are padded where the parts do not divide it."""

    def __init__(self, size: int, group: RankGroup) -> None:
        self.size, self.group = size, group
        self.slice = group.mine.of(size)  # rows on this rank, padding included
        self.first = min(group.mine.first * (self.slice // group.mine.count), size)
        self.num_real = min(self.slice, size - self.first)

    def weight(self, name: str, hidden_size: int, empty: Empty) -> Weight:  # [slice, hidden]
        """A weight to be filled by `pieces`, with zeros as padding: in any format, bytes of 0 are zeros."""
        weight = empty.weight(name, self.slice, hidden_size)
        (weight.data if isinstance(weight, Blocks) else weight)[self.num_real :] = 0
        return weight

    def pieces(self, name: str, weight: Weight) -> Iterator[Slice]:
        if self.num_real:
            whole = (self.size, weight.shape[1])
            yield Slice.of(name, whole, weight[: self.num_real], row=self.first)


class Embedding:
    """Token ids to hidden states: each rank looks up the tokens that it holds, the sum has them all."""

    def __init__(self, name: str, vocabulary: VocabularySlice, hidden_size: int, empty: Empty) -> None:
        self.name, self.vocabulary = name, vocabulary
        self.weight = vocabulary.weight(f"{name}.weight", hidden_size, empty)

    def pieces(self) -> Iterator[Slice]:
        return self.vocabulary.pieces(f"{self.name}.weight", self.weight)

    def __call__(self, token_ids: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        group = self.vocabulary.group
        if group.size == 1:
            return self._rows(token_ids)
        place = token_ids - self.vocabulary.first
        elsewhere = (place < 0) | (place >= self.vocabulary.num_real)
        x = self._rows(place.masked_fill(elsewhere, 0))
        return group.all_reduce(x.masked_fill_(elsewhere[:, None], 0))

    def _rows(self, numbers: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        if isinstance(self.weight, Blocks):
            return self.weight[numbers].float().to(self.weight.dtype)
        return F.embedding(numbers, self.weight)


class Head(Linear):
    """Hidden states to logits over the whole vocabulary, gathered from all ranks by the first.

    Args:
        name: of its own weight in the checkpoint; not read when `tied`.
        tied: the embedding whose weight it shares, or None. A packed head would be a copy, for the embedding
            reads rows of the plain weight: it is one only where no kernel of ours reads that, too.
        biased: it has a bias, tied or not.
    """

    def __init__(
        self,
        name: str,
        vocabulary: VocabularySlice,
        hidden_size: int,
        tied: Embedding | None,
        empty: Empty,
        biased: bool = False,
    ) -> None:
        own = f"{name}.weight"
        weight = tied.weight if tied else vocabulary.weight(own, hidden_size, empty)
        order = None if tied else empty.order(own, hidden_size)
        super().__init__(weight, empty(vocabulary.slice).zero_() if biased else None, order)
        self.name, self.vocabulary, self.tied = name, vocabulary, tied
        self._order_name = empty.formats.orders.get(own)

    def pieces(self) -> Iterator[Slice]:
        vocabulary = self.vocabulary
        if not self.tied:
            yield from vocabulary.pieces(f"{self.name}.weight", self.weight)
        if self.order is not None:
            yield Slice(self._order_name, (self.weight.shape[1],), self.order)
        if self.bias is not None and vocabulary.num_real:
            bias = self.bias[: vocabulary.num_real]
            yield Slice(f"{self.name}.bias", (vocabulary.size,), bias, row=vocabulary.first)

    def pack(self) -> None:
        if (
            self.tied
            and isinstance(self.weight, Tensor)
            and dense.meant_for(self.weight.device, self.weight.dtype)
        ):
            return
        super().pack()
        if self.tied and isinstance(self.weight, Blocks):
            self.tied.weight = self.weight  # whose bytes may have another order now

    @property
    def copied(self) -> int:
        """Bytes that packing takes in addition, because the embedding keeps the plain weight."""
        return self.nbytes if self.tied and self.packed is not None else 0

    def __call__(self, x: Tensor) -> Tensor | None:  # [sampled, hidden] -> [sampled, vocabulary], float32
        """On rank 0, which alone samples; None on the others."""
        logits = self.vocabulary.group.gather(super().__call__(x))
        return None if logits is None else logits[:, : self.vocabulary.size].float()
