"""Every token attends over what it may see, wherever that lies and however the step is cut."""

from __future__ import annotations

import math
import mmap
from importlib.util import find_spec

import pytest
import torch

from tests.workers.attention_steps import SEEING, attend_in_any_cut
from tests.workers.engines import DEVICES, GPU
from tests.workers.interpreted_steps import between_products
from workers.attention import blockwise
from workers.attention.registry import attention_over
from workers.cache import paged

MAP_NORESERVE = 0x4000  # of Linux


def in_small_blocks(monkeypatch, pages: int) -> None:
    """Attend in blocks of so many pages of keys, and as few scores as there can be."""
    monkeypatch.setattr(blockwise, "BLOCK_PAGES", pages)
    for device in blockwise.BLOCK_SCORES:
        monkeypatch.setitem(blockwise.BLOCK_SCORES, device, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("block_pages", [blockwise.BLOCK_PAGES, 2])
@pytest.mark.parametrize(("seed", "kind"), [*enumerate(["plain", "sinks", "latent"])])
def test_steps_of_any_cut_attend_as_whole_sequences_do(device, seed, kind, block_pages, exact, monkeypatch):
    in_small_blocks(monkeypatch, block_pages)
    attend_in_any_cut(attention_over, device, seed, kind, exact=exact)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("seed", "kind", "block_pages"), [(6, "plain", blockwise.BLOCK_PAGES), (7, "sinks", 2)]
)
def test_tokens_of_an_image_see_each_other_and_what_a_window_leaves_of_the_rest(
    device, seed, kind, block_pages, exact, monkeypatch
):
    in_small_blocks(monkeypatch, block_pages)
    attend_in_any_cut(attention_over, device, seed, kind, exact=exact, groups=SEEING, images=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("seed", "kv_cache_dtype"), [*enumerate(["int8", "fp8"])])
def test_tokens_attend_over_keys_and_values_as_they_are_kept(device, seed, kv_cache_dtype, exact):
    """Those of the same step included, however it is cut."""
    attend_in_any_cut(attention_over, device, seed, "sinks", exact=exact, kv_cache_dtype=kv_cache_dtype)


@pytest.mark.parametrize(
    ("kind", "kv_cache_dtype"), [("plain", None), ("sinks", None), ("latent", None), ("plain", "int8")]
)
@pytest.mark.parametrize("exact", [False, True])
def test_a_step_touches_no_page_but_its_own_however_large_the_pool_is(
    kind, kv_cache_dtype, exact, monkeypatch
):
    def addresses(shape, dtype, device):  # more than there is memory for
        size, flags = math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)

    monkeypatch.setattr(paged, "zeros", addresses)
    pool = {"kv_cache_dtype": kv_cache_dtype, "unused": 1 << 26}
    attend_in_any_cut(attention_over, "cpu", 5, kind, exact=exact, **pool)


TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")


@TRITON
@pytest.mark.parametrize(
    ("tokens", "head_dim", "window", "special", "capability"),
    [
        ("single", 64, 1, False, 90),
        ("single", 128, 0, False, 90),
        ("single", 128, 2, False, 120),
        ("single", 192, 0, True, 86),
        ("few", 64, 1, False, 90),
        ("few", 64, 1, True, 90),
        ("single", 128, 1, False, 80),
        ("single", 64, 0, True, 86),
        ("few", 256, 1, False, 80),
        ("few", 128, 1, True, 80),
        ("single", 256, 1, True, 86),
        ("few", 512, 1, False, 90),
        ("few", 512, 1, True, 90),
        ("single", 576, 0, False, 89),
        ("prompt", 128, 0, False, 90),
        ("prompt", 96, 0, False, 120),
        ("prompt", 96, 1, True, 86),
        ("prompt", 128, 1, False, 86),
        ("prompt", 192, 1, True, 89),
        ("prompt", 256, 0, False, 120),
    ],
)
def test_a_kernel_fits_its_card_and_spills_nothing(tokens, head_dim, window, special, capability):
    """The worst of each sort; `benchmarks.kernels` goes through all of them."""
    fits(capability, tokens, head_dim, window=window, special=special)


# First what takes most registers, on every card; then all sizes of heads and kinds of codes, each on some.
EIGHT_BITS = [
    *((card, "prompt", 128 if card == 90 else 64, 2) for card in (80, 86, 89, 90, 120)),
    *((80, "prompt", 256, 1), (90, "prompt", 256, 2), (120, "prompt", 128, 1), (90, "prompt", 64, 1)),
    (120, "prompt", 256, 1),
    *((90, "single", 64, 2), (120, "single", 128, 2), (86, "single", 256, 2), (120, "single", 512, 2)),
    *((80, "single", 128, 1), (89, "single", 256, 1)),
    *((89, "few", 64, 1), (90, "few", 128, 2), (80, "few", 256, 2), (86, "few", 192, 1)),
]


@TRITON
def test_a_kernel_for_tokens_that_see_each_other_fits_its_card_as_well():
    from benchmarks.attention import compile_attention
    from benchmarks.kernels import SHARED_BYTES

    found = compile_attention(86, "prompt", 256, window=1, mutual=True)  # of Gemma 3 4B
    assert found.shared <= SHARED_BYTES[86]
    assert (found.spilt, found.load) == (0, 16)


@TRITON
@pytest.mark.parametrize(("capability", "tokens", "head_dim", "kind"), EIGHT_BITS)
def test_a_kernel_over_8_bits_fits_cards_that_do_not_know_the_type_too(capability, tokens, head_dim, kind):
    fits(capability, tokens, head_dim, window=1, special=True, kind=kind)


@TRITON
@pytest.mark.parametrize(("capability", "kind"), [(90, 1), (120, 2)])
def test_nor_does_a_kernel_over_8_bits_that_sees_all_spill_with_a_cap(capability, kind):
    fits(capability, "few", 64, special=True, kind=kind)


@TRITON
def test_a_kernel_over_8_bits_in_float32_spills_nothing():
    fits(90, "prompt", 128, dtype="fp32", kind=2)


def fits(capability, *given, **options):
    from benchmarks.attention import compile_attention
    from benchmarks.kernels import SHARED_BYTES

    found = compile_attention(capability, *given, **options)
    assert found.shared <= SHARED_BYTES[capability]
    assert (found.spilt, found.load) == (0, 16)


CASES = (
    *("decode", "decode of 1 head a key head", "decode of 7 heads a key head", "decode with a window"),
    *("decode in chunks with sinks", "decode of latent vectors", "five tokens", "prompt"),
    *("prompt behind another", "prompt with a window", "prompt with sinks", "prompt of latent vectors"),
    *("prompt of heads of 512", "decode over int8", "decode over fp8 with a window"),
    *("five tokens over fp8 with sinks", "prompt over int8", "prompt over fp8"),
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_a_device_attends_in_bfloat16_as_torch_does_in_float32(name, device):
    from benchmarks.attention import RIGHT, Inputs

    inputs = Inputs(RIGHT[name], device)
    found, expected = inputs.attend().float(), inputs.reference()
    assert (found - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_a_device_computes_what_is_between_products_as_torch_does(dtype, device):
    torch.manual_seed(0)
    with torch.device(device):
        between_products(dtype)
