"""What each layer of a model keeps of the tokens before, whatever it is spread over."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from ipc.model_settings import KVCacheDtype
from ipc.worker_messages import CacheKind
from workers.checkpoints.caches import SCALE_BYTES, LayerCache
from workers.checkpoints.shares import Share

STATE_BYTES = 4  # of an element of a recurrent state: float32, whatever the weights are


class PageShape(NamedTuple):
    """What one layer keeps of each token on one rank, in elements."""

    blocks: int  # keys, and values; 1: one block is both
    heads: int
    size: int  # of a head

    def bytes_per_token(self, itemsize: int, kv_cache_dtype: KVCacheDtype | None) -> int:
        """Of elements of `itemsize`, or in a format of 8 bits, with their scales."""
        heads = self.blocks * self.heads
        return heads * (self.size * itemsize if kv_cache_dtype is None else self.size + SCALE_BYTES)


class Layer(msgspec.Struct, frozen=True, array_like=True):
    """The cache of one layer, of the whole model.

    * `full`: keys and values of every token; and a state beside them, where it has a size.
    * `window`: keys and values, of which a token sees the last `window`, its own included.
    * `chunk`: keys and values. Tokens see those before them of the same `window`, which follow each other.
    * `state`: one state a sequence, which every token changes; its elements are spread over the ranks, but
      for those of groups, of which every rank has at least one.
    * `nothing`: the layer sees a token alone.
    * `latent`: one compressed vector a token, of which every rank keeps all (multi-head latent attention).
    """

    kind: CacheKind | Literal["nothing"]
    kv_heads: int = 0  # `full`, `window`, `chunk`
    head_dim: int = 0
    window: int | None = None  # tokens
    latent_size: int = 0  # elements a token
    state_size: int = 0  # elements a sequence, that are spread
    state_groups: int = 0
    group_size: int = 0  # elements a sequence, of each of these
    keys_of: int | None = None  # an earlier layer, whose keys and values this one reads: it keeps none
    in_order: bool = False  # tokens of an image see none behind them, though they may in other layers

    @property
    def keeps(self) -> bool:
        """Whether there is anything."""
        return self.kind != "nothing" and self.keys_of is None

    def on_rank(
        self, share: Share, itemsize: int, kv_cache_dtype: KVCacheDtype | None = None
    ) -> LayerCache | None:
        """The same in bytes of a rank, where an element of keys and values takes `itemsize`; unless they
        are kept in 8 bits."""
        if not self.keeps:
            return None
        return LayerCache(
            self.kind,
            window=self.window or 0,
            bytes_per_token=self.shape_on_rank(share).bytes_per_token(itemsize, kv_cache_dtype),
            bytes_per_sequence=self.state_on_rank(share) * STATE_BYTES if self.kind == "state" else 0,
            in_order=self.in_order,
        )

    def beside_on_rank(self, share: Share) -> LayerCache | None:
        """The same of a state beside keys and values."""
        if self.kind == "state" or not self.state_size:
            return None
        return LayerCache("state", bytes_per_sequence=self.state_on_rank(share) * STATE_BYTES)

    def state_on_rank(self, share: Share) -> int:
        """Elements of a sequence's state."""
        groups = share.kv_heads(self.state_groups) if self.state_groups else 0
        return share.of(self.state_size) + groups * self.group_size

    def shape_on_rank(self, share: Share) -> PageShape:
        """Of what it keeps of a token."""
        if self.kind == "latent":
            return PageShape(1, 1, self.latent_size)
        heads = share.kv_heads(self.kv_heads) if self.kv_heads else 0
        return PageShape(2, heads, self.head_dim)
