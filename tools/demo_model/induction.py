"""Start the training with heads that can already copy.

A transformer learns to copy late: one head must look at the token before, another must find where the
current token occurred and read what came next there, and neither is of use without the other. Both are
simple enough to be written down (Olsson et al. 2022, "In-context Learning and Induction Heads"). On random
tokens that come twice, after 20 steps the planted model copies half of them and the unplanted one none;
after 40 steps it copies 97 %. Training may change it all again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tools.demo_model.model import Attention, Qwen3

CONSTANT = 0.3
"""Value of dimension 0 in every embedding: something that heads which ignore the content can read."""


@torch.no_grad()
def plant(model: Qwen3) -> None:
    """Layer 0 writes the last token and the one before it into the stream; layer 1 matches and copies."""
    shape = model.shape
    hidden, head = shape.hidden_size, shape.head_dim
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    basis = torch.linalg.qr(torch.randn(hidden, hidden))[0].T  # orthonormal rows
    basis[:, 0] = 0.0
    what, last, before = basis[:head], basis[head : 2 * head], basis[2 * head : 3 * head]

    first = model.model.layers[0].self_attn
    _look_back(first, shape.rope_theta)
    first.v_proj.weight[:head] = what  # [head_dim, hidden]: which token it is
    first.o_proj.weight[:, :head] = 0.15 * last.T  # written by head 0, which looks 1 back
    first.o_proj.weight[:, head : 2 * head] = 0.15 * before.T  # and by head 1, which looks 2 back

    groups, share = shape.num_key_value_heads, shape.num_attention_heads // shape.num_key_value_heads
    attention = model.model.layers[1].self_attn
    copied = torch.linalg.qr(torch.randn(hidden, hidden))[0].T
    for group in range(groups):
        rows = slice(group * head, (group + 1) * head)
        query = slice(group * share * head, group * share * head + head)
        # a key says what came before it, a query what is here; the fast dimensions would only add noise
        slow = _slow(head)
        attention.k_proj.weight[rows] = slow * last
        attention.q_proj.weight[query] = slow * what
        attention.v_proj.weight[rows] = copied[rows]
        attention.o_proj.weight[:, query] = 0.3 * copied[rows].T
    attention.q_norm.weight.fill_(2.2)
    attention.k_norm.weight.fill_(2.2)


def _look_back(attention: Attention, theta: float) -> None:
    """Heads 0 and 1 attend to the tokens 1 and 2 back, whatever they are: only the rotation decides."""
    head = attention.head_dim
    fast = 8  # pairs (i, i + head / 2) of which neighbours differ enough
    angle = theta ** -(torch.arange(0, head, 2) / head)[:fast]
    pairs = torch.cat((torch.arange(fast), torch.arange(fast) + head // 2))
    for index in (0, 1):  # a query turned back by index, a key turned on by 1: they meet index + 1 apart
        turned = -index * angle
        attention.q_proj.weight[index * head : (index + 1) * head] = 0.0
        attention.q_proj.weight[index * head + pairs, 0] = torch.cat((turned.cos(), turned.sin()))
    attention.k_proj.weight[:head] = 0.0
    attention.k_proj.weight[pairs, 0] = torch.cat((angle.cos(), angle.sin()))
    attention.q_norm.weight[pairs] = 2.5
    attention.k_norm.weight[pairs] = 2.5


def _slow(head_dim: int) -> Tensor:  # [head_dim, 1]
    """1 for the dimensions that turn by less than a radian in about 100 tokens, 0 for the others."""
    half = (torch.arange(head_dim // 2) >= head_dim // 4).float()
    return torch.cat((half, half))[:, None]
