"""What a conversion is: it makes some rows and columns of one weight of what it reads of its sources."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from workers.checkpoints.card import StoredTensor

Read = Callable[[StoredTensor, range, range], Tensor]
"""Rows and columns of a stored tensor, in its type, or as bytes; a vector has one column."""

Conversion = Callable[[Read, StoredTensor, range, range], Tensor]
"""Rows and columns of a weight as `StoredTensor.dtype` has them: in a plain type, or as bytes of blocks."""
