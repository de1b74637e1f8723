"""The gated delta rule (https://arxiv.org/abs/2412.06464) and the short convolution before it, in torch.

A head has a matrix S `[key_dim, value_dim]`. A token lets it decay, reads what is there for its key, writes
the difference to its value, as far as `beta` says, and reads once more, for its query:

    S = exp(decay) S        S += k (beta (v - kᵀS))ᵀ        y = qᵀS

`recur` does that for one token of each of several sequences, `chunked` for many tokens of one: 64 at a time,
as products of matrices (section 3.3 there). All of it is float32. Key heads come with the value heads that
they serve: value head h has key head h // (value heads / key heads).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens that are taken together; the products within are CHUNK x CHUNK
# Tokens whose products within chunks are in memory at once: few stay in a CPU's cache, many are few launches.
BLOCK = {"cpu": 128, "cuda": 2048}
EPS = 1e-6  # of the squared length of a query or a key


def unit(x: Tensor) -> Tensor:  # [..., size] float32
    """Vectors of length 1."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + EPS)


def convolve(
    x: Tensor,  # [tokens, channels] float32, of one sequence
    before: Tensor,  # [kernel - 1, channels] float32: the inputs before them
    weight: Tensor,  # [channels, kernel] float32
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Each channel over the last `kernel` tokens, through SiLU; and the inputs that the next tokens see."""
    window = torch.cat((before, x))
    y = window[: len(x)] * weight[:, 0]
    for place in range(1, weight.shape[1]):
        y.addcmul_(window[place : place + len(x)], weight[:, place])
    return F.silu(y) if silu else y, window[len(x) :]


def convolve_each(
    x: Tensor,  # [sequences, channels] float32: one token of each
    before: Tensor,  # [sequences, kernel - 1, channels] float32
    weight: Tensor,  # [channels, kernel] float32
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same for one token of each sequence."""
    window = torch.cat((before, x[:, None]), dim=1)
    y = (window * weight.t()).sum(dim=1)
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
    state: Tensor,  # [heads, key_dim, value_dim] float32
    q: Tensor,  # [tokens, key_heads, key_dim] float32, of unit length
    k: Tensor,  # the same
    v: Tensor,  # [tokens, heads, value_dim] float32
    decay: Tensor,  # [tokens, heads] float32: the logarithm, at most 0
    beta: Tensor,  # the same, from 0 to 1
) -> tuple[Tensor, Tensor]:  # [tokens, heads, value_dim] float32, and the state after them
    """Tokens of one sequence, in order. Queries are scaled here."""
    found, block = [], BLOCK[v.device.type]
    for start in range(0, len(v), block):
        part = (each[start : start + block] for each in (q, k, v, decay, beta))
        y, state = _block(state, *part)
        found.append(y)
    return found[0] if len(found) == 1 else torch.cat(found), state


def _block(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Within a chunk, what a token writes depends on what those before it wrote: a triangular system, which
    forward substitution solves for all of them: what they write without the state before the chunk (`own`),
    and how much that state takes away (`lost`)."""
    tokens, heads, key_heads = *v.shape[:2], k.shape[1]
    size = min(CHUNK, tokens)
    missing = -tokens % size

    def in_chunks(x: Tensor) -> Tensor:  # [tokens, n, ...] -> [key_heads, n / key_heads, chunks, size, ...]
        x = F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)).transpose(0, 1)
        return x.reshape(key_heads, -1, (tokens + missing) // size, size, *x.shape[2:])

    q, k, v, decay, beta = map(in_chunks, (q * q.shape[-1] ** -0.5, k, v, decay, beta))
    total = decay.cumsum(dim=-1)  # of the chunk, up to each token and with it
    later = torch.ones(size, size, dtype=torch.bool, device=v.device).triu(1)
    between = (total[..., :, None] - total[..., None, :]).masked_fill_(later, -torch.inf).exp_()
    grown, keys = total.exp(), k.transpose(-1, -2)
    system = (k @ keys * between).mul_(beta[..., None])
    one = torch.eye(size, dtype=v.dtype, device=v.device)
    solved = torch.linalg.solve_triangular(system, one, upper=False, unitriangular=True) * beta[..., None, :]
    own = (solved @ v).flatten(0, 1)
    lost = ((solved * grown[..., None, :]) @ k).flatten(0, 1)
    seen, grown = (q @ keys * between).flatten(0, 1), grown[..., None]
    asked = (q * grown).flatten(0, 1)
    last = total[..., -1:]
    keys = (k * (last - total).exp()[..., None]).flatten(0, 1).transpose(-1, -2)
    kept = last.exp()[..., None].flatten(0, 1)
    y = own.new_empty(own.shape)
    for number in range(own.shape[1]):
        change = torch.baddbmm(own[:, number], lost[:, number], state, alpha=-1)
        y[:, number] = torch.baddbmm(asked[:, number] @ state, seen[:, number], change)
        state = torch.baddbmm(state * kept[:, number], keys[:, number], change)
    return y.reshape(heads, -1, y.shape[-1])[:, :tokens].transpose(0, 1), state
