"""What the model runner and the models ask of attention. Where keys and values lie is its own affair."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from workers.step.batch import Segment

# What a model calls in each of its layers: with its number, queries `[tokens, heads, head_dim]`, and the keys
# and values of the same tokens `[tokens, kv_heads, head_dim]`. What comes back has the shape of the queries.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class AttentionBackend(Protocol):
    """Causal attention of a step's tokens over what their sequences have in the cache."""

    sizes: dict[str, int]  # of its arrays in the input buffers, the most that a step may need

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """What it wants to have on the device in this step, under the names of `sizes`."""
        ...

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> Any:
        """Once a step: what `run` needs to know of it, from the same segments and arrays."""
        ...

    def run(self, prepared: Any, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """In each layer: keep the keys and values of the new tokens, and let these attend (see `Attend`)."""
        ...
