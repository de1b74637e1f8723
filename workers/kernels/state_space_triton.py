"""What `workers.kernels.state_space.recur` computes, on a GPU: few tokens of each sequence in one launch.

A program has some columns of a head's matrix, which it reads once and writes once. Prompts of more tokens are
products that torch has.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.checkpoints.model_config import Mamba
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.gated_delta_triton import Places
from workers.kernels.launch import Launcher

COLUMNS = 32  # of a head's matrix, of a program
WARPS = 4


@triton.jit
def space_kernel(
    y,  # [tokens, channels] float32, after the convolution
    decay,  # [tokens, HEADS] float32
    beta,  # the same: steps
    skip,  # [HEADS] float32
    matrices,  # [states, GROUPS, STATE_DIM, heads of a group * HEAD_DIM] float32, of a layer
    out,  # [tokens, HEADS, HEAD_DIM] float32
    starts,
    ends,
    read,
    written,
    stride,  # elements from one state to the next
    channels,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    STATE_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SKIPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    wait_for_previous()
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    shared: tl.constexpr = HEADS // GROUPS
    group = head // shared
    n, e = tl.arange(0, BLOCK_N), tl.program_id(2) * BLOCK_E + tl.arange(0, BLOCK_E)
    of_key, of_head = n < STATE_DIM, e < HEAD_DIM
    row_at = (group * STATE_DIM + n) * shared * HEAD_DIM
    at = row_at[:, None] + (head % shared * HEAD_DIM + e)[None, :]
    mask = of_key[:, None] & of_head[None, :]
    state = tl.load(matrices + tl.load(read + sequence) * stride + at, mask=mask, other=0.0)
    through = 0.0
    if SKIPS:
        through = tl.load(skip + head)
    end = tl.load(ends + sequence)
    for row in range(tl.load(starts + sequence), tl.load(starts + sequence + 1)):
        inputs = y + row * channels
        keys = inputs + HEADS * HEAD_DIM + group * STATE_DIM + n
        k = tl.load(keys, mask=of_key, other=0.0)
        q = tl.load(keys + GROUPS * STATE_DIM, mask=of_key, other=0.0)
        x = tl.load(inputs + head * HEAD_DIM + e, mask=of_head, other=0.0)
        state *= tl.exp(tl.load(decay + row * HEADS + head))
        state += k[:, None] * (x * tl.load(beta + row * HEADS + head))[None, :]
        if row + 1 == end:
            tl.store(matrices + tl.load(written + sequence) * stride + at, state, mask=mask)
        found = tl.sum(state * q[:, None], axis=0)
        if SKIPS:
            found += through * x
        tl.store(out + (row * HEADS + head) * HEAD_DIM + e, found, mask=of_head)


SPACE = Launcher(space_kernel)


def recur(
    y: Tensor,  # [tokens, channels] float32
    decay: Tensor,  # [tokens, heads] float32
    beta: Tensor,  # the same: steps
    matrices: Tensor,  # [states, *shape.matrices] float32
    out: Tensor,  # [tokens, heads, head_dim] float32
    places: Places,
    sequences: int,
    shape: Mamba,
    skip: Tensor | None = None,  # [heads] float32: how much of what heads are given is added
) -> None:
    """Token after token of the first `sequences` of `places`."""
    columns = min(COLUMNS, triton.next_power_of_2(shape.head_dim))
    SPACE(
        (sequences, shape.heads, triton.cdiv(shape.head_dim, columns)),
        *(y, decay, beta, decay if skip is None else skip, matrices, out, *places),
        *(matrices.stride(0), y.shape[1]),
        *(shape.heads, shape.groups, shape.state_dim, shape.head_dim, skip is not None),
        *(triton.next_power_of_2(shape.state_dim), columns),
        num_warps=WARPS,
    )
