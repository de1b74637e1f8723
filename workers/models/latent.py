"""Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1).

Of each token one vector is kept, of which every head would make its keys and values by matrices of its own.
It does not: a query goes through the matrix of the keys instead, and what attention finds through that of the
values. All heads then attend over the same vectors, which are keys, and in their first part values as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from workers.checkpoints.families.deepseek import LATENT_EPS
from workers.checkpoints.model_config import ModelConfig
from workers.kernels import fused
from workers.layers.heads import HeadLinear
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.norm import RMSNorm
from workers.layers.rotary import rotate
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class LatentAttention:
    """Every rank makes the vectors of all tokens, and has some of the heads."""

    def __init__(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        latent, hidden, heads = config.latent, config.hidden_size, config.num_heads
        self.latent, self.interleaved = latent, config.interleaved
        mine = group.share(heads)
        self.num_heads, self.head_dim = len(mine), config.head_dim
        rows = range(mine.start * config.head_dim, mine.stop * config.head_dim)
        queries, kept = heads * config.head_dim, latent.rank + latent.rope_dim
        compressed = [(f"{name}.kv_a_proj_with_mqa", kept, range(kept))]
        self.query_norm: RMSNorm | None = None
        self.query: Linear | None = None
        if latent.query_rank is not None:
            rank = latent.query_rank
            compressed.append((f"{name}.q_a_proj", rank, range(rank)))
            self.query_norm = RMSNorm(f"{name}.q_a_layernorm", rank, LATENT_EPS, empty)
            self.query = ColumnParallel([(f"{name}.q_b_proj", queries, rows)], rank, False, empty)
        else:
            self.query = ColumnParallel([(f"{name}.q_proj", queries, rows)], hidden, False, empty)
        self.compressed = ColumnParallel(compressed, hidden, config.qkv_bias, empty)
        self.norm = RMSNorm(f"{name}.kv_a_layernorm", latent.rank, LATENT_EPS, empty)
        sizes = (latent.plain_dim, latent.value_dim)
        self.heads = HeadLinear(f"{name}.kv_b_proj", sizes, latent.rank, heads, group, empty)
        columns, bias = heads * latent.value_dim, config.output_bias
        self.output = RowParallel(f"{name}.o_proj", hidden, columns, bias, group, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.compressed, self.query, self.output

    def make_exact(self) -> None:
        self.heads.make_exact()

    def norm_pieces(self) -> Iterator[Slice]:
        if self.query_norm is not None:
            yield from self.query_norm.pieces()
        yield from self.norm.pieces()
        yield from self.heads.pieces()

    def __call__(
        self,
        x: Tensor,  # [tokens, hidden]
        angles: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, None], Tensor],  # queries, and keys that have the values in them
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden]
        latent = self.latent
        compressed = self.compressed(x)
        source = (
            x if self.query_norm is None else self.query_norm(compressed[:, latent.rank + latent.rope_dim :])
        )
        q = self.query(source).view(len(x), self.num_heads, self.head_dim)
        queries, keys = self._attending(q, compressed, angles)
        found = attend(queries, keys, None)  # [tokens, heads, rank]
        found = found if wanted is None else found.index_select(0, wanted)
        return self.output(self.heads.through_values(found).flatten(1))

    def _attending(
        self, q: Tensor, compressed: Tensor, angles: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:  # [tokens, heads, rank + rope_dim], and of one head
        """Queries and keys, in the space of latent vectors and with their positions."""
        latent, norm = self.latent, self.norm
        plain, turning = q.split((latent.plain_dim, latent.rope_dim), dim=-1)
        through = self.heads.through_keys(plain)
        if fused.has_triton(q.device):
            how = norm.weight, norm.eps, angles, self.interleaved
            return fused.latent_heads(through, turning, compressed, *how)

        def turned(part: Tensor) -> Tensor:
            return rotate(part.float(), *angles, self.interleaved).to(q.dtype)

        vector, key = compressed[:, : latent.rank], compressed[:, latent.rank : latent.rank + latent.rope_dim]
        keys = torch.cat((norm(vector)[:, None], turned(key[:, None])), dim=-1)
        return torch.cat((through, turned(turning)), dim=-1), keys
