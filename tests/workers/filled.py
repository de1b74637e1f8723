"""What is in the weights of a model, to compare them to the bit."""

from __future__ import annotations

import torch

from workers.models.decoder import Decoder

Bytes = dict[tuple[str, int, int], torch.Tensor]


def bytes_of(model: Decoder) -> Bytes:
    """What is in every weight."""
    pieces = [piece for part in model.parts() for piece in part.pieces]
    return {(piece.name, piece.row, piece.column): piece.into.clone() for piece in pieces}


def same(first: list[Bytes], second: list[Bytes]) -> bool:
    """To the bit."""
    return all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(first, second, strict=True)
    )
