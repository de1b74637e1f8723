"""What the model runner and the models ask of attention. Where keys and values lie is its own affair."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from workers.kernels.fused import Turn
from workers.step.batch import Segment


class Attend(Protocol):
    """What a model calls in each of its layers."""

    def __call__(
        self,
        layer: int,
        q: Tensor,  # [tokens, heads, head_dim]
        keys: Tensor | None,  # [tokens, kv_heads, head_dim], of the same tokens; None: they are kept already
        values: Tensor | None,  # the same; None: they are in the keys
        sinks: Tensor
        | None = None,  # [heads]: a score that each has beside those of tokens, and no value for it
        turn: Turn | None = None,  # what to do to queries and keys first; only where there is Triton
    ) -> Tensor:  # [tokens, heads, head_dim of values]
        ...


class AttentionBackend(Protocol):
    """Causal attention of a step's tokens over what their sequences have in the cache.

    A step that decodes may be a CUDA graph (`workers.execution.graphs`), if `capturable`. It is padded then
    with segments of one token at position 0, all of one slot with a page that no sequence has; and what one
    such step made of its inputs is done again with those of any other that has as many segments. So `prepare`
    and `run` may depend on that number, on addresses and on what is in them on the device, and on nothing
    else: no count of pages, no context length that the host looked at.
    """

    sizes: dict[str, int]  # of its arrays in the input buffers, the most that a step may need
    capturable: bool

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """What it wants to have on the device in this step, under the names of `sizes`."""
        ...

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> Any:
        """Once a step: what `run` needs to know of it, from the same segments and arrays."""
        ...

    def run(
        self,
        prepared: Any,
        layer: int,
        q: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        sinks: Tensor | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        """In each layer: keep the keys and values of the new tokens, and let these attend (see `Attend`)."""
        ...
