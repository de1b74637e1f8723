"""The tokens of one step as the model sees them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.layers.attention import Chunk, PageRun


@dataclass(slots=True)
class Batch:
    """Prefill and decode together, flattened: first one token of each sequence in decode, then the chunks."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64, from 0 in each sequence
    pages: Tensor  # [tokens] int64, the page that takes each token's keys and values
    places: Tensor  # [tokens] int64, its place in that page
    num_decode: int  # tokens that `runs` is for
    runs: list[PageRun]
    chunks: list[Chunk]
    sampled: Tensor  # [sampled] int64, the tokens that are followed by a new one
