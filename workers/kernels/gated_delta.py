"""The gated delta rule (https://arxiv.org/abs/2412.06464) and the short convolution before it, in torch.

A head has a matrix S `[key_dim, value_dim]`. A token lets it decay, reads what is there for its key, writes
the difference to its value, as far as `beta` says, and reads once more, for its query:

    S = exp(decay) S        S += k (beta (v - kᵀS))ᵀ        y = qᵀS

`recur` does that for one token of each of several sequences, `chunked` for many tokens of one: 32 at a time,
as products of matrices (section 3.3 there). All of it is float32. Key heads come with the value heads that
they serve: value head h has key head h // (value heads / key heads).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32  # tokens that are taken together; the products within are CHUNK x CHUNK
EPS = 1e-6  # of the squared length of a query or a key


def unit(x: Tensor) -> Tensor:  # [..., size] float32
    """Vectors of length 1."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + EPS)


def convolve(
    x: Tensor,  # [tokens, channels] float32, of one sequence
    before: Tensor,  # [kernel - 1, channels] float32: the inputs before them
    weight: Tensor,  # [channels, kernel] float32
    bias: Tensor | None = None,  # [channels] float32
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Each channel over the last `kernel` tokens, through SiLU; and the inputs that the next tokens see."""
    window = torch.cat((before, x))
    weights = weight.t().contiguous()  # channels beside each other, as they stand in `x`
    y = window[: len(x)] * weights[0]
    if bias is not None:
        y += bias
    for place in range(1, len(weights)):
        y.addcmul_(window[place : place + len(x)], weights[place])
    return F.silu(y) if silu else y, window[len(x) :].clone()  # a part would keep the whole


def convolve_each(
    x: Tensor,  # [sequences, channels] float32: one token of each
    before: Tensor,  # [sequences, kernel - 1, channels] float32
    weight: Tensor,  # [channels, kernel] float32
    bias: Tensor | None = None,  # [channels] float32
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same for one token of each sequence."""
    window = torch.cat((before, x[:, None]), dim=1)
    y = (window * weight.t()).sum(dim=1)
    if bias is not None:
        y += bias
    return F.silu(y) if silu else y, window[:, 1:]


def recur(
    state: Tensor,  # [sequences, heads, key_dim, value_dim] float32; changed in place
    q: Tensor,  # [sequences, key_heads, key_dim] float32, of unit length
    k: Tensor,  # the same
    v: Tensor,  # [sequences, heads, value_dim] float32
    decay: Tensor,  # [sequences, heads] float32: the logarithm, at most 0
    beta: Tensor,  # the same, from 0 to 1
) -> Tensor:  # [sequences, heads, value_dim] float32
    """One token of each sequence. Queries are scaled here."""
    shared = v.shape[1] // k.shape[1]
    q = q * q.shape[-1] ** -0.5
    both = torch.stack((k, q), dim=2).repeat_interleave(shared, dim=1)  # [sequences, heads, 2, key_dim]
    kept = decay.exp()[..., None]
    read = torch.matmul(both, state) * kept[..., None]  # what is there, for the key and for the query
    change = (v - read[:, :, 0]) * beta[..., None]
    keys = both[:, :, 0]
    overlap = (keys * both[:, :, 1]).sum(dim=-1, keepdim=True)
    state.mul_(kept[..., None]).addcmul_(keys[..., None], change[:, :, None])
    return read[:, :, 1] + overlap * change


def chunked(
    state: Tensor,  # [heads, key_dim, value_dim] float32; changed in place
    q: Tensor,  # [tokens, key_heads, key_dim] float32, of unit length
    k: Tensor,  # the same
    v: Tensor,  # [tokens, heads, value_dim] float32
    decay: Tensor,  # [tokens, heads] float32: the logarithm, at most 0
    beta: Tensor,  # the same, from 0 to 1
    out: Tensor,  # [tokens, heads, value_dim] float32: where the result goes
) -> None:
    """Tokens of one sequence, in order. Queries are scaled here."""
    q = q * q.shape[-1] ** -0.5
    for start in range(0, len(v), CHUNK):
        part = slice(start, start + CHUNK)
        out[part] = _chunk(state, q[part], k[part], v[part], decay[part], beta[part])


def _chunk(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """What a token writes depends on what those before it wrote: a triangular system, which forward
    substitution solves for all of them. What they write is that of their values, less what the state before
    the chunk has for their keys. The value heads of a key head are rows of one product where they can be."""
    size, heads, key_heads = *v.shape[:2], k.shape[1]
    q, k, v, decay, beta = (each.transpose(0, 1) for each in (q, k, v, decay, beta))  # heads first
    keys = k.transpose(1, 2)
    total = decay.cumsum(dim=1)  # [heads, size]: of the chunk, up to each token and with it
    later = torch.ones(size, size, dtype=torch.bool, device=v.device).triu(1)
    between = (total[:, :, None] - total[:, None]).masked_fill_(later, -torch.inf).exp_()

    def of_heads(x: Tensor, weight: Tensor) -> Tensor:  # [key_heads, size, n], [heads, size, n or 1]
        return (x[:, None] * weight.unflatten(0, (key_heads, -1))).flatten(0, 1)

    system = of_heads(torch.bmm(k, keys), between).mul_(beta[:, :, None])
    one = torch.eye(size, dtype=v.dtype, device=v.device)
    solved = torch.linalg.solve_triangular(system, one, upper=False, unitriangular=True)
    solved = (solved * beta[:, None]).contiguous()  # [heads, size, size]
    grown = total.exp()
    rows = (solved * grown[:, None]).view(key_heads, -1, size)
    change = torch.bmm(solved, v).baddbmm_(torch.bmm(rows, k).view(heads, size, -1), state, alpha=-1)
    y = torch.bmm(of_heads(q, grown[:, :, None]), state)
    y.baddbmm_(of_heads(torch.bmm(q, keys), between), change)
    last = total[:, -1:]
    written = of_heads(k, (last - total).exp_()[:, :, None])
    state.mul_(last.exp()[:, :, None]).baddbmm_(written.transpose(1, 2), change)
    return y.transpose(0, 1)
