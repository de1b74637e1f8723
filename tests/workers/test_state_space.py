"""The state space of Mamba-2 in its forms: many tokens at once, one after the other, cut anywhere."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workers.cache.state import StateCache
from workers.checkpoints.model_config import Mamba
from workers.kernels.state_space import CHUNK, LARGE_CHUNK, chunked, recur

GROUPS, HEADS, STATE_DIM, HEAD_DIM = 2, 6, 12, 8
COLUMNS = HEADS // GROUPS * HEAD_DIM
TOKENS = 2 * 130 + 7


def tokens(count: int, seed: int = 0, decay: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Inputs, keys, queries, decay and step, as a layer makes them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    k, q = (normal(GROUPS, STATE_DIM) for _ in range(2))
    step = normal(HEADS).exp()
    return normal(HEADS, HEAD_DIM), k, q, -decay * step * torch.arange(1, HEADS + 1) / HEADS, step


def one_by_one(state: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As it is written in the paper, head by head and token by token, in float64."""
    parts, found = [part.double() for part in parts], []
    matrices = state.double().view(GROUPS, STATE_DIM, HEADS // GROUPS, HEAD_DIM).transpose(1, 2).flatten(0, 1)
    for x, k, q, decay, step in zip(*parts, strict=True):
        keys, queries = (each.repeat_interleave(HEADS // GROUPS, dim=0) for each in (k, q))
        written = torch.einsum("h,hn,hp->hnp", step, keys, x)
        matrices = decay.exp()[:, None, None] * matrices + written
        found.append(torch.einsum("hn,hnp->hp", queries, matrices))
    end = matrices.unflatten(0, (GROUPS, -1)).transpose(1, 2).flatten(2)
    return torch.stack(found).float(), end.float()


def in_chunks(state: torch.Tensor, *parts: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """What `chunked` makes of them, which changes the state in place."""
    out = torch.empty_like(parts[0])
    chunked(state, *parts, out, chunk)
    return out


class Launches(TorchDispatchMode):
    """How much is computed that is not another view of the same numbers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **kwargs or {})


@pytest.fixture(scope="module")
def whole():
    """Tokens, what becomes of all of them, and the states before and after."""
    parts = tokens(TOKENS)
    state = torch.randn(GROUPS, STATE_DIM, COLUMNS, generator=torch.Generator().manual_seed(1))
    return parts, state, *one_by_one(state, *parts)


@pytest.mark.parametrize("first", [range(1, 44), range(44, 87), range(87, 131)], ids=str)
def test_a_sequence_may_be_cut_anywhere(whole, first):
    """Into pieces of which the first have 1 to 130 tokens."""
    parts, begin, expected, end = whole
    for size in first:
        state, found, start = begin.clone(), [], 0
        for length in (size, size, TOKENS):
            piece = [part[start : start + length] for part in parts]
            if len(piece[0]):
                found.append(in_chunks(state, *piece))
            start += length
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)


def test_decode_goes_on_from_a_prompt_and_sequences_do_not_mix(whole):
    parts, begin, expected, end = whole
    other = tokens(TOKENS, seed=5)
    both = torch.stack((begin, begin))
    for state, each in zip(both, (parts, other), strict=True):
        in_chunks(state, *(part[:100] for part in each))
    for t in range(100, TOKENS):
        y = recur(both, *(torch.stack((a[t], b[t])) for a, b in zip(parts, other, strict=True)))
        torch.testing.assert_close(y[0], expected[t], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[0], end, rtol=1e-4, atol=1e-4)


def test_a_state_that_is_forgotten_at_once_or_never_stays_finite():
    """Where a head decays so fast that its factors are 0, and where it does not decay at all."""
    state = torch.randn(GROUPS, STATE_DIM, COLUMNS)
    for decay in (0.0, 1000.0):
        parts = tokens(200, decay=decay)
        expected, end = one_by_one(state, *parts)
        y = in_chunks(state, *parts)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-3)


def test_as_many_as_a_gpu_takes_together_leave_the_same(whole):
    parts, begin, expected, end = whole
    for size in (1, 10, 100, LARGE_CHUNK, TOKENS):
        state = begin.clone()
        pieces = [[part[:size] for part in parts], [part[size:] for part in parts]]
        found = [in_chunks(state, *piece, chunk=LARGE_CHUNK) for piece in pieces if len(piece[0])]
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)


def test_a_gpu_has_some_hundred_launches_for_a_prompt_of_thousands_of_tokens(monkeypatch):
    pytest.importorskip("triton")
    from workers.attention.spaces_cuda import SpaceStep, TritonSpaces
    from workers.kernels.gated_delta_triton import Places
    from workers.kernels.launch import Launcher

    monkeypatch.setattr(Launcher, "__call__", lambda *arguments, **options: None)
    shape, count = Mamba(heads=16, head_dim=64, groups=2, state_dim=128, kernel=4), 2048
    with torch.device("meta"), Launches() as launches:
        one, numbers = torch.empty(1, dtype=torch.int64), torch.empty(count, shape.heads)
        backend = TritonSpaces(StateCache([0], shape, states=1, device=one.device), 0, count)
        step = SpaceStep(one, Places(*[one] * 4), guesses=None, num_few=0, prompts=[slice(0, count)])
        inputs = torch.empty(count, shape.channels), torch.empty(shape.channels, shape.kernel)
        backend.run(step, 0, *inputs, numbers, numbers)
    assert launches.count < 200
