"""The state space of Mamba-2 (https://arxiv.org/abs/2405.21060), in torch.

A head has a matrix S `[state_dim, head_dim]`. A token lets it decay, writes its input for its key, as far as
its step says, and reads for its query (x, B and C in the paper):

    S = exp(decay) S + k (step x)ᵀ        y = qᵀS

`recur` does that for one token of each of several sequences, `chunked` for many tokens of one: some at a
time, as products of matrices (section 6 there). All of it is float32. Heads that follow each other share keys
and queries: they are a group, whose matrices lie beside each other, and are read and written in one product.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Tokens that are taken together on a CPU, and on a GPU, where each chunk costs the host its launches; within
# there are products of as many rows as columns
CHUNK, LARGE_CHUNK = 64, 256


def recur(
    state: Tensor,  # [sequences, groups, state_dim, heads of a group * head_dim] float32; changed in place
    x: Tensor,  # [sequences, heads, head_dim] float32
    k: Tensor,  # [sequences, groups, state_dim] float32
    q: Tensor,  # the same
    decay: Tensor,  # [sequences, heads] float32: the logarithm, at most 0
    step: Tensor,  # the same, at least 0
) -> Tensor:  # [sequences, heads, head_dim] float32
    """One token of each sequence."""
    groups = k.shape[1]
    written = (x * step[..., None]).unflatten(1, (groups, -1)).flatten(2)  # [sequences, groups, columns]
    kept = decay.exp()[..., None].expand(x.shape).unflatten(1, (groups, -1)).flatten(2)
    read = torch.matmul(q[:, :, None], state)[:, :, 0].mul_(kept)
    state.mul_(kept[:, :, None]).addcmul_(k[..., None], written[:, :, None])
    read.addcmul_((q * k).sum(dim=-1, keepdim=True), written)
    return read.view(x.shape)


def chunked(
    state: Tensor,  # [groups, state_dim, heads of a group * head_dim] float32; changed in place
    x: Tensor,  # [tokens, heads, head_dim] float32
    k: Tensor,  # [tokens, groups, state_dim] float32
    q: Tensor,  # the same
    decay: Tensor,  # [tokens, heads] float32: the logarithm, at most 0
    step: Tensor,  # the same, at least 0
    out: Tensor,  # [tokens, heads, head_dim] float32: where the result goes
    chunk: int = CHUNK,  # tokens that are taken together
) -> None:
    """Tokens of one sequence, in order."""
    size = min(chunk, len(x))
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu_(1)
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        _chunk(state, x[part], k[part], q[part], decay[part], step[part], out[part], later)


def _chunk(
    state: Tensor,
    x: Tensor,
    k: Tensor,
    q: Tensor,
    decay: Tensor,
    step: Tensor,
    out: Tensor,
    later: Tensor,  # [a chunk's, a chunk's] bool: which tokens come after each
) -> None:
    """A token reads what the state before the chunk has for its query, and what the tokens up to it wrote,
    each as far as it has not decayed since."""
    size, groups = len(x), k.shape[1]
    k, q = k.transpose(0, 1), q.transpose(0, 1)  # groups first
    total = decay.cumsum(dim=0)  # [size, heads]: of the chunk, up to each token and with it
    by_head = total.t()
    between = (by_head[:, :, None] - by_head[:, None]).masked_fill_(later[:size, :size], -torch.inf).exp_()
    between.unflatten(0, (groups, -1)).mul_(torch.bmm(q, k.transpose(1, 2))[:, None])
    written = x * step[..., None]

    def of_groups(values: Tensor) -> Tensor:  # [size, heads, head_dim] -> [groups, size, columns]
        return values.unflatten(1, (groups, -1)).flatten(2).transpose(0, 1)

    read = torch.bmm(q, state).transpose(0, 1).reshape(x.shape).mul_(total.exp()[..., None])
    torch.add(read, torch.bmm(between, written.transpose(0, 1)).transpose(0, 1), out=out)
    last = total[-1:]
    written.mul_((last - total).exp_()[..., None])
    kept = last.exp().t().expand(-1, x.shape[2]).reshape(groups, 1, -1)
    state.mul_(kept).baddbmm_(k.transpose(1, 2), of_groups(written))
