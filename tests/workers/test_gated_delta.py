"""The gated delta rule in its forms: many tokens at once, one after the other, cut anywhere."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from benchmarks.states import SHAPE, compile_kernel
from tests.workers.engines import DEVICES
from workers.kernels.gated_delta import chunked, convolve, convolve_each, recur, unit

NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="torch for the CPU has no Triton")

KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM, KERNEL = 2, 6, 8, 12, 4
TOKENS = 2 * 130 + 7


def tokens(count: int, seed: int = 0, decay: float = 1.0) -> tuple[torch.Tensor, ...]:
    """q, k, v, decay and beta, as a layer makes them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    q, k = (unit(normal(KEY_HEADS, KEY_DIM)) for _ in range(2))
    return q, k, normal(HEADS, VALUE_DIM), -decay * normal(HEADS).exp(), normal(HEADS).sigmoid()


def one_by_one(state: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule as it is written in the paper, token by token, in float64."""
    state, (q, k, v, decay, beta) = state.double(), (part.double() for part in parts)
    shared, found = HEADS // KEY_HEADS, []
    for t in range(len(v)):
        query, key = (x[t].repeat_interleave(shared, dim=0) for x in (q, k))
        state = state * decay[t].exp()[:, None, None]
        change = beta[t][:, None] * (v[t] - torch.einsum("hk,hkv->hv", key, state))
        state = state + torch.einsum("hk,hv->hkv", key, change)
        found.append(torch.einsum("hk,hkv->hv", query, state) * KEY_DIM**-0.5)
    return torch.stack(found).float(), state.float()


def in_chunks(state: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
    """What `chunked` makes of them, which changes the state in place."""
    out = torch.empty_like(parts[2])
    chunked(state, *parts, out)
    return out


@pytest.fixture(scope="module")
def whole():
    """Tokens, what the rule makes of all of them, and the states after each."""
    parts = tokens(TOKENS)
    state = torch.randn(HEADS, KEY_DIM, VALUE_DIM, generator=torch.Generator().manual_seed(1))
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
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-5)


def test_decode_goes_on_from_a_prompt_and_sequences_do_not_mix(whole):
    parts, begin, expected, end = whole
    other = tokens(TOKENS, seed=5)
    both = torch.stack((begin, begin))
    for state, each in zip(both, (parts, other), strict=True):
        in_chunks(state, *(part[:100] for part in each))
    for t in range(100, TOKENS):
        y = recur(both, *(torch.stack((a[t], b[t])) for a, b in zip(parts, other, strict=True)))
        torch.testing.assert_close(y[0], expected[t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[0], end, rtol=1e-4, atol=1e-5)


def test_a_state_that_is_forgotten_at_once_or_never_stays_finite():
    """Where a head decays so fast that its factors are 0, and where it does not decay at all."""
    state = torch.randn(HEADS, KEY_DIM, VALUE_DIM)
    for decay in (0.0, 100.0):
        parts = tokens(200, decay=decay)
        expected, end = one_by_one(state, *parts)
        y = in_chunks(state, *parts)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)


def test_equal_keys_that_are_written_over_and_over_do_not_blow_up():
    """The inverse of such a system, made by squaring, overflows; substitution does not."""
    _, k, v, decay, beta = tokens(128, decay=0.0)
    k, beta = k[:1].expand_as(k).contiguous(), torch.ones_like(beta)
    y = in_chunks(torch.zeros(HEADS, KEY_DIM, VALUE_DIM), k, k, v, decay, beta)
    torch.testing.assert_close(y, v * KEY_DIM**-0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_on_a_gpu_it_leaves_the_same(device):
    from tests.workers.state_steps import SHAPES, errors  # of Triton, which comes with torch for CUDA

    for shape in (*SHAPES, SHAPE):
        for dtype in (torch.float32, torch.bfloat16):
            assert max(errors(device, shape, dtype)) < 3e-3  # queries are multiplied in 11 bits


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("name", "capability"),
    [
        *(("convolve_kernel", 86), ("keep_inputs_kernel", 120), ("recur_kernel", 90)),
        *(("space_kernel", card) for card in (80, 86, 89, 90, 120)),
        *((name, card) for name in ("solve_kernel", "pass_kernel") for card in (80, 86, 89, 90, 120)),
    ],
)
def test_a_kernel_fits_its_card_and_spills_nothing(name, capability):
    from benchmarks.kernels import SHARED_BYTES, Compiled

    found = Compiled(compile_kernel(capability, name), False)
    assert found.shared <= SHARED_BYTES[capability]
    assert found.spilt == 0


@NEEDS_TRITON
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_so_does_that_of_the_widest_state_of_mamba_2(capability):
    """Falcon-H1 has matrices of 256 rows, of which a program holds some columns in registers."""
    from benchmarks.kernels import SHARED_BYTES, Compiled

    found = Compiled(compile_kernel(capability, "space_kernel", state_dim=256), False)
    assert found.shared <= SHARED_BYTES[capability]
    assert found.spilt == 0


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_a_convolution_sees_the_tokens_before_a_cut(kernel):
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(20, 10, generator=generator), torch.randn(10, kernel, generator=generator)
    before = torch.randn(kernel - 1, 10, generator=generator)
    padded = torch.cat((before, x)).t()[None]
    conv = torch.nn.functional.conv1d(padded, weight[:, None], groups=10)[0].t()
    expected = torch.nn.functional.silu(conv)
    for size in range(1, 20):
        y, seen = convolve(x[:size], before, weight)
        rest, after = convolve(x[size:], seen, weight)
        torch.testing.assert_close(torch.cat((y, rest)), expected)
        assert torch.equal(after, torch.cat((before, x))[20:])
    for t in range(20):
        y, before = convolve_each(x[t : t + 1], before if t else before[None], weight)
        torch.testing.assert_close(y[0], expected[t])
