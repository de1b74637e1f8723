"""Which backend of attention serves which device."""

from __future__ import annotations

from typing import Any

from workers.attention.backend import AttentionBackend
from workers.attention.convolutions import ConvolvedInputs
from workers.attention.cpu import PagedAttention
from workers.attention.states import RecurrentStates, StateBackend
from workers.cache.paged import KVCache
from workers.cache.state import StateCache
from workers.checkpoints.model_config import DeltaNet, Mamba, ShortConvolution
from workers.kernels.fused import has_triton


def attention_over(cache: KVCache, *limits: Any, **options: Any) -> AttentionBackend:
    """The backend for the device that `cache` lies on; for the arguments see `PagedAttention`."""
    if has_triton(cache.device):
        from workers.attention.cuda import TritonAttention

        return TritonAttention(cache, *limits, **options)
    return PagedAttention(cache, *limits, **options)


def states_over(cache: StateCache, group: int, max_segments: int, exact: bool) -> StateBackend:
    """The same for layers with a state, for the arguments of `RecurrentStates`.

    With `exact`, that is torch on a GPU as well: token after token.
    """
    if has_triton(cache.device) and not exact:
        from workers.attention.convolutions_cuda import TritonInputs
        from workers.attention.spaces_cuda import TritonSpaces
        from workers.attention.states_cuda import TritonStates

        kinds = {DeltaNet: TritonStates, Mamba: TritonSpaces, ShortConvolution: TritonInputs}
        return kinds[type(cache.shape)](cache, group, max_segments)
    kind = ConvolvedInputs if isinstance(cache.shape, ShortConvolution) else RecurrentStates
    return kind(cache, group, max_segments, exact)
