"""Qwen3 in plain torch, as small as it can be written and still trained: the demo model's shape and maths.

Serving has its own implementation with pages and ranks. This one is for training only; parameter names are
those of a Hugging Face checkpoint, so `state_dict()` is the export.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3; the defaults make 3.4 million parameters. Heads divide by 4 so that 4 ranks can share."""

    vocab_size: int = 1792
    hidden_size: int = 256
    intermediate_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., size]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary:
    """cos and sin of every position in a batch, float32, computed once a step for all layers."""

    def __init__(self, shape: Shape, positions: Tensor) -> None:  # positions: [batch, tokens]
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=positions.device) / shape.head_dim
        angle = positions[..., None].float() * shape.rope_theta**-half
        angle = torch.cat((angle, angle), dim=-1)[:, None]  # [batch, 1, tokens, head_dim]
        self.cos, self.sin = angle.cos(), angle.sin()

    def __call__(self, x: Tensor) -> Tensor:  # [batch, heads, tokens, head_dim]
        first, second = x.chunk(2, dim=-1)
        return (x * self.cos + torch.cat((-second, first), dim=-1) * self.sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        queries, keys = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:  # [batch, tokens, hidden]
        batch, tokens, _ = x.shape
        q, k, v = (
            projection(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotary(self.q_norm(q)), rotary(self.k_norm(k))
        mixed = F.scaled_dot_product_attention(
            q, k, v.to(q.dtype), attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Qwen3(nn.Module):
    """The whole model; the head is the embedding, transposed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2's rule: what writes into the residual stream is scaled down by its depth
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 * 2 / (2 * shape.num_hidden_layers) ** 0.5 if writes else 0.04)

    def forward(
        self,
        tokens: Tensor,  # [batch, tokens] int64
        positions: Tensor | None = None,  # [batch, tokens]; None: 0, 1, 2, …
        mask: Tensor | None = None,  # [batch, 1, tokens, tokens] bool, True where attended; None: causal
        keep: Tensor | None = None,  # [batch, tokens] bool: only these need logits
    ) -> Tensor:  # [batch, tokens, vocabulary], or [kept, vocabulary]
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        rotary = Rotary(self.shape, positions)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rotary, mask)
        x = self.model.norm(x if keep is None else x[keep])
        return F.linear(x, self.model.embed_tokens.weight)
