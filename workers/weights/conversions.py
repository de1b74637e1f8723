"""Weights that are stored in several tensors, or in a layout that nothing computes with, in a kept format.

A conversion makes some rows and columns of one weight of what it reads of its sources, in a thread of the
loader. The card names it (`StoredTensor.conversion`), and the format that comes of it (`StoredTensor.dtype`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from workers.checkpoints.card import StoredTensor

Read = Callable[[StoredTensor, range, range], Tensor]
"""Rows and columns of a stored tensor, in its type; a vector has one column."""

Conversion = Callable[[Read, StoredTensor, range, range], Tensor]
"""Rows and columns of a weight as `StoredTensor.dtype` has them: in a plain type, or as bytes of blocks."""

CONVERSIONS: dict[str, Conversion] = {}
