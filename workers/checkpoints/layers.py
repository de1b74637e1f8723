"""What each layer of a model keeps of the tokens before, whatever it is spread over."""

from __future__ import annotations

import msgspec

from workers.checkpoints.caches import Kind, LayerCache

SERVED: frozenset[Kind] = frozenset({"full", "window", "latent"})  # the kinds that the engine can keep
STATE_BYTES = 4  # of an element of a recurrent state: float32, whatever the weights are


class Layer(msgspec.Struct, frozen=True, array_like=True):
    """The cache of one layer, of the whole model.

    * `full`: keys and values of every token.
    * `window`: keys and values, of which a token sees the last `window`, its own included.
    * `state`: one state a sequence, which every token changes; its elements are spread over the ranks.
    * `latent`: one compressed vector a token, of which every rank keeps all (multi-head latent attention).
    """

    kind: Kind
    kv_heads: int = 0  # `full`, `window`
    head_dim: int = 0
    window: int | None = None  # tokens
    latent_size: int = 0  # elements a token
    state_size: int = 0  # elements a sequence

    def on_rank(self, world_size: int, itemsize: int) -> LayerCache:
        """The same in bytes of each rank, where an element of keys and values takes `itemsize`."""
        keys = kv_heads_on_rank(self.kv_heads, world_size) * self.head_dim if self.kv_heads else 0
        return LayerCache(
            self.kind,
            window=self.window or 0,
            bytes_per_token=(2 * keys + self.latent_size) * itemsize,
            bytes_per_sequence=-(-self.state_size // world_size) * STATE_BYTES,
        )


def kv_heads_on_rank(kv_heads: int, world_size: int) -> int:
    """KV heads of each rank: a part of them, or a copy of one."""
    return max(1, kv_heads // world_size)
