"""The kernels beside products and attention, compiled without a device, as `benchmarks.kernels` does.

Each function compiles one of them for cards of a capability, in the variant that its arguments name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import triton

from benchmarks.kernels import Compiled, compile_for
from ipc.worker_messages import PAGE_SIZE
from workers.kernels import (
    attention_triton,
    cache_triton,
    choice_triton,
    chosen_triton,
    delta_gates_triton,
    gated_triton,
    heads_triton,
    latent_triton,
    norm_triton,
    one_shot_triton,
    pairs_triton,
    planes_triton,
    router_triton,
    skinny,
)
from workers.kernels.choosing import Choosing
from workers.kernels.eight_bits_triton import FP8, INT8, WHOLE

TYPES = ("bf16", "fp16", "fp32")
HEADS, KV_HEADS = 32, 8
RANKS = (2, 3, 4, 8)
CODES = {INT8: "*i8", FP8: "*u8"}


class Turn(NamedTuple):
    """What is done to heads: of `workers.kernels.fused.Turn`."""

    normed: bool = False
    angles: bool = True
    interleaved: bool = False
    then_normed: bool = False
    grows: bool = False


TURNS = (
    Turn(),
    Turn(normed=True),
    Turn(normed=True, angles=False),
    Turn(angles=False, grows=True),
    Turn(interleaved=True, then_normed=True),
    Turn(normed=True, interleaved=True, then_normed=True, grows=True),
)


def compile_write(
    capability: int, dtype: str = "bf16", kind: int = WHOLE, with_values: bool = True, head_dim: int = 128
) -> Compiled:
    """New keys and values into their pages."""
    block_d = triton.next_power_of_2(head_dim)
    pointers = dict.fromkeys(("keys", "values"), f"*{dtype}") | _kept(dtype, kind)
    strides = ("keys_stride", "key_head_stride", "values_stride", "value_head_stride")
    constants = {"KV_HEADS": KV_HEADS, "HEAD_DIM": head_dim, "PAGE": PAGE_SIZE, "WITH_VALUES": with_values}
    block_h = max(1, min(KV_HEADS, 1024 // block_d))
    constants |= {"KIND": kind, "BLOCK_H": block_h, "BLOCK_D": block_d}
    strides = dict.fromkeys((*strides, "page_stride", "scale_stride"), "i32")
    given = pointers, strides, constants, None, cache_triton.warps(block_h * block_d)
    return _compiled(capability, cache_triton.write_kernel, *given)


def compile_heads(
    capability: int, dtype: str = "bf16", kind: int = WHOLE, turn: Turn = TURNS[1], head_dim: int = 128
) -> Compiled:
    """Heads turned, and keys and values into their pages."""
    block_d = triton.next_power_of_2(head_dim)
    types = dict.fromkeys(("q", "keys", "values", "turned", "q_weight", "k_weight"), f"*{dtype}")
    types |= dict.fromkeys(("cos", "sin"), "*fp32" if turn.angles else f"*{dtype}")
    types |= {"growth": "*fp32" if turn.grows else f"*{dtype}"} | _kept(dtype, kind)
    strides = dict.fromkeys(("q_stride", "k_stride", "v_stride", "page_stride", "scale_stride"), "i32")
    constants = {"HEADS": HEADS, "KV_HEADS": KV_HEADS, "HEAD_DIM": head_dim, "PAGE": PAGE_SIZE}
    constants |= {"ANGLES": head_dim if turn.angles else 0, "NORMED": turn.normed}
    constants |= {"THEN_NORMED": turn.then_normed, "INTERLEAVED": turn.interleaved, "GROWS": turn.grows}
    constants |= {"KIND": kind, "BLOCK_H": max(1, heads_triton.ELEMENTS // block_d), "BLOCK_D": block_d}
    floats = dict.fromkeys(("eps", "offset"), "fp32")
    return _compiled(capability, heads_triton.heads_kernel, types, strides, constants, floats)


def compile_latent(
    capability: int, dtype: str = "bf16", interleaved: bool = True, rank: int = 512, turned: int = 64
) -> Compiled:
    """Queries and keys of latent attention."""
    names = ("through", "turning", "compressed", "weight", "queries", "keys")
    pointers = dict.fromkeys(names, f"*{dtype}") | dict.fromkeys(("cos", "sin"), "*fp32")
    strides = ("through_stride", "through_head_stride", "turning_stride", "turning_head_stride")
    strides = dict.fromkeys((*strides, "compressed_stride"), "i32")
    block = triton.next_power_of_2(rank + turned)
    constants = {"HEADS": HEADS, "RANK": rank, "TURNED": turned, "INTERLEAVED": interleaved, "BLOCK": block}
    given = pointers, strides, constants, {"eps": "fp32"}, latent_triton.warps(block)
    return _compiled(capability, latent_triton.latent_kernel, *given)


def compile_norm(
    capability: int, dtype: str = "bf16", before: bool = True, after: bool = False, size: int = 4096
) -> Compiled:
    """Rows normalised, and a sum before or after that."""
    block = triton.next_power_of_2(size)
    pointers = dict.fromkeys(("x", "beside", "weight", "total", "y"), f"*{dtype}")
    strides, floats = dict.fromkeys(("x_stride", "beside_stride"), "i32"), ("eps", "offset")
    constants = {"SIZE": size, "BEFORE": before, "AFTER": after, "BLOCK": block}
    given = pointers, strides, constants, dict.fromkeys(floats, "fp32"), norm_triton.warps(block)
    return _compiled(capability, norm_triton.norm_kernel, *given)


def compile_gated(
    capability: int, dtype: str = "bf16", activation: int = 0, interleaved: bool = False
) -> Compiled:
    """An activation, and what it gates."""
    pointers, sizes = dict.fromkeys(("gate_up", "y"), f"*{dtype}"), dict.fromkeys(("inner", "stride"), "i32")
    constants = {"ACTIVATION": activation, "INTERLEAVED": interleaved, "BLOCK": gated_triton.BLOCK}
    floats = dict.fromkeys(("alpha", "limit"), "fp32")
    return _compiled(capability, gated_triton.gated_kernel, pointers, sizes, constants, floats)


def compile_decay(capability: int, dtype: str = "bf16", heads: int = 48) -> Compiled:
    """Decays and betas of a Gated DeltaNet."""
    pointers = dict.fromkeys(("beta", "step"), f"*{dtype}")
    pointers |= dict.fromkeys(("bias", "rate", "decay", "opened"), "*fp32")
    given = pointers, dict.fromkeys(("heads", "stride"), "i32"), {"BLOCK": triton.next_power_of_2(heads)}
    return _compiled(capability, delta_gates_triton.decay_kernel, *given, None, 1)


def compile_gated_norm(capability: int, dtype: str = "bf16", size: int = 128) -> Compiled:
    """What comes behind its delta rule."""
    block_d = triton.next_power_of_2(size)
    pointers = {"x": "*fp32"} | dict.fromkeys(("gates", "weight", "y"), f"*{dtype}")
    constants = {"SIZE": size, "BLOCK_H": max(1, delta_gates_triton.ELEMENTS // block_d), "BLOCK_D": block_d}
    given = pointers, dict.fromkeys(("heads", "stride"), "i32"), constants, {"eps": "fp32"}
    return _compiled(capability, delta_gates_triton.gated_norm_kernel, *given)


def compile_router(
    capability: int,
    dtype: str = "bf16",
    experts: int = 128,
    chosen: int = 8,
    tokens: int = 16,
    groups: int = 1,
    by_logits: bool = False,
) -> Compiled:
    """Logits of few tokens, what they choose, and its pairs."""
    pointers = {"x": f"*{dtype}", "order": "*i64"} | dict.fromkeys(("numbers", "starts", "done"), "*i32")
    pointers |= dict.fromkeys(("w", "bias", "correction", "logits", "weights"), "*fp32")
    others = dict.fromkeys(("tokens", "first", "mine", "experts", "size"), "i32")
    others |= dict.fromkeys(("least", "scale"), "fp32")
    how = Choosing(chosen, True, 0.0, 1.0, groups, max(1, groups // 2), by_logits)
    constants = choice_triton.constants(experts, True, how)
    constants |= {"HAS_BIAS": True, "BLOCK_E": router_triton.BLOCK_E, "BLOCK_K": router_triton.BLOCK_K}
    constants["PAIRS"] = router_triton.most_pairs(tokens, chosen)
    given = pointers, {"columns": "i32"}, constants, others, router_triton.WARPS
    return _compiled(capability, router_triton.router_kernel, *given)


def compile_chosen(
    capability: int, dtype: str = "bf16", chosen: int = 8, beside: bool = True, gated: bool = True
) -> Compiled:
    """What so many experts give a token, and what stands beside them, summed."""
    pointers = dict.fromkeys(("pairs", "beside", "gates", "y"), f"*{dtype}")
    constants = {"CHOSEN": chosen, "HAS_BESIDE": beside, "HAS_GATES": gated, "BLOCK": chosen_triton.BLOCK}
    given = pointers, {"columns": "i32"}, constants, None, 1
    return _compiled(capability, chosen_triton.chosen_kernel, *given)


def compile_pairs(capability: int, experts: int = 128) -> Compiled:
    """Pairs of a token and one of so many experts, sorted."""
    most, programs = pairs_triton.MOST, pairs_triton.PROGRAMS
    share = triton.next_power_of_2(triton.cdiv(experts + 1, programs))
    pointers, counts = {"numbers": "*i64", "order": "*i64", "starts": "*i32"}, ("pairs", "experts")
    constants = {"PAIRS": most, "EXPERTS": share, "PIECE": most // programs}
    unknown = dict.fromkeys(counts, "i32")
    return _compiled(capability, pairs_triton.pairs_kernel, pointers, {}, constants, unknown)


def compile_choice(
    capability: int,
    experts: int = 128,
    sigmoid: bool = False,
    chosen: int = 8,
    groups: int = 1,
    by_logits: bool = False,
) -> Compiled:
    """Experts chosen; corrected, where scores are sigmoids, and normalised."""
    pointers = {"logits": "*fp32", "correction": "*fp32", "weights": "*fp32", "numbers": "*i64"}
    how = Choosing(chosen, sigmoid, 0.0, 1.0, groups, max(1, groups // 2), by_logits)
    constants = choice_triton.constants(experts, sigmoid, how)
    unknown = {"experts": "i32", "size": "i32", "least": "fp32", "scale": "fp32"}
    given = pointers, {}, constants, unknown, choice_triton.warps(constants["EXPERTS"])
    return _compiled(capability, choice_triton.choice_kernel, *given)


def compile_join(
    capability: int,
    dtype: str = "bf16",
    single: bool = True,
    window: int = 0,
    sinks: bool = False,
    head_dim: int = 128,
) -> Compiled:
    """What attention found in the splits of a sequence, joined. `window`: the number of its kind."""
    pointers = dict.fromkeys(("y", "sinks"), f"*{dtype}") | dict.fromkeys(("parts", "sums"), "*fp32")
    pointers |= dict.fromkeys(("order", "starts", "contexts"), "*i64")
    unknown = dict.fromkeys(("first", "tokens", "room", "window"), "i32")
    constants = {"SINGLE": single, "HEADS": HEADS, "VALUE_DIM": head_dim, "WINDOW": window, "SINKS": sinks}
    constants |= {"MOST": attention_triton.MOST_SPLITS, "UNIT": attention_triton.SPLIT}
    constants["BLOCK_V"] = min(128, max(16, triton.next_power_of_2(head_dim)))
    return _compiled(capability, attention_triton.join_kernel, pointers, {}, constants, unknown)


def compile_dequantise(capability: int, kind: str = "Q4_K", dtype: str = "bf16", filled: int = 0) -> Compiled:
    """A weight in planes as numbers."""
    pointers = {"w": "*u8", "y": f"*{dtype}"}
    sizes = dict.fromkeys(("num_rows", "columns", "row_stride"), "i32")
    given = pointers, sizes, {"KIND": kind, "BLOCK_N": 32, "FILLED": filled}, {}, 1
    return _compiled(capability, skinny.dequantise_kernel, *given)


def compile_one_shot(capability: int, dtype: str = "bf16", size: int = 2) -> Compiled:
    """A small tensor summed over so many ranks."""
    pointers = {"x": "*i32", "slots": "*i64", "counts": "*i32"}
    unknown = dict.fromkeys(("words", "rank", "patience"), "i32")
    constants = {"SIZE": size, "SLOTS": one_shot_triton.SLOTS, "PLACES": one_shot_triton.places(size)}
    constants |= {"KIND": TYPES.index(dtype), "BLOCK": one_shot_triton.BLOCK}
    given = pointers, {}, constants, unknown, one_shot_triton.WARPS
    return _compiled(capability, one_shot_triton.one_shot_kernel, *given)


def _kept(dtype: str, kind: int) -> dict[str, str]:
    """Types of keys and values in pages, of their scales, and of what says where a step's tokens are."""
    pages = dict.fromkeys(("kept_keys", "kept_values"), CODES.get(kind, f"*{dtype}"))
    scales = dict.fromkeys(("key_scales", "value_scales"), "*fp16" if kind else f"*{dtype}")
    return pages | scales | dict.fromkeys(("owners", "starts", "contexts", "tables", "pages"), "*i64")


def _compiled(
    capability: int,
    kernel: Any,
    pointers: dict[str, str],
    sizes: dict[str, str],  # multiples of 16
    constants: dict[str, Any],
    others: dict[str, str] | None = None,
    warps: int = 4,
) -> Compiled:
    types, aligned = pointers | sizes | (others or {}), (*pointers, *sizes)
    return Compiled(compile_for(capability, kernel, types, constants, aligned, num_warps=warps), True)


def kernels() -> Iterator[tuple[Any, str, Callable[[int], Compiled]]]:
    """As `benchmarks.kernels.kernels`."""
    kinds = {WHOLE: "", INT8: " int8", FP8: " fp8"}
    for dtype, kind, with_values in product(TYPES, kinds, (True, False)):
        given = {"dtype": dtype, "kind": kind, "with_values": with_values}
        name = f"write {dtype}{kinds[kind]}{' values' * with_values}"
        yield cache_triton.write_kernel, name, partial(compile_write, **given)
    for dtype, kind, turn in product(TYPES, kinds, TURNS):
        done = " ".join(name for name, does in turn._asdict().items() if does)
        call = partial(compile_heads, dtype=dtype, kind=kind, turn=turn)
        yield heads_triton.heads_kernel, f"heads {dtype}{kinds[kind]} {done}", call
    for head_dim, kind in product((64, 80, 96, 192, 256, 512, 576), kinds):
        given = {"kind": kind, "head_dim": head_dim}
        yield cache_triton.write_kernel, f"write {head_dim}{kinds[kind]}", partial(compile_write, **given)
        yield heads_triton.heads_kernel, f"heads {head_dim}{kinds[kind]}", partial(compile_heads, **given)
    for dtype, interleaved, rank in product(TYPES, (True, False), (256, 512)):
        given = {"dtype": dtype, "interleaved": interleaved, "rank": rank}
        name = f"latent {dtype} {rank}{' interleaved' * interleaved}"
        yield latent_triton.latent_kernel, name, partial(compile_latent, **given)
    for dtype, (before, after), size in product(
        TYPES, ((True, False), (False, True), (False, False)), (64, 1024, 5120, 16_384)
    ):
        name = f"norm {dtype} {size}{' of a sum' * before}{' in a sum' * after}"
        given = {"dtype": dtype, "before": before, "after": after, "size": size}
        yield norm_triton.norm_kernel, name, partial(compile_norm, **given)
    for dtype, activation in product(TYPES, range(4)):
        given = {"dtype": dtype, "activation": activation, "interleaved": activation == 3}
        yield gated_triton.gated_kernel, f"gated {dtype} {activation}", partial(compile_gated, **given)
    for dtype in TYPES:
        call = partial(compile_decay, dtype=dtype)
        yield delta_gates_triton.decay_kernel, f"decay {dtype}", call
    for dtype, size in product(TYPES, (64, 128, 256)):
        call = partial(compile_gated_norm, dtype=dtype, size=size)
        yield delta_gates_triton.gated_norm_kernel, f"gated norm {dtype} {size}", call
    for dtype, chosen, (beside, gated) in product(
        TYPES, (1, 4, 8, 10), ((False, False), (True, False), (True, True))
    ):
        given = {"dtype": dtype, "chosen": chosen, "beside": beside, "gated": gated}
        name = f"chosen {dtype} {chosen}{' and another' * beside}{', gated' * gated}"
        yield chosen_triton.chosen_kernel, name, partial(compile_chosen, **given)
    for experts in (8, 64, 128, 256, 512):
        yield pairs_triton.pairs_kernel, f"pairs {experts}", partial(compile_pairs, experts=experts)
    for experts, chosen, tokens in product((8, 128, 512), (1, 8, 16), (1, 16)):
        given = {"experts": experts, "chosen": chosen, "tokens": tokens}
        name = f"router {experts} {chosen} {tokens}"
        yield router_triton.router_kernel, name, partial(compile_router, **given)
    for experts, groups in ((8, 4), (160, 8), (256, 8), (512, 16)):
        given = {"experts": experts, "groups": groups}
        name = f"router {experts} in {groups} groups"
        yield router_triton.router_kernel, name, partial(compile_router, **given)
    chosen_of = ((8, 1), (64, 1), (128, 1), (256, 1), (512, 1), (8, 4), (160, 8), (256, 8), (512, 16))
    for (experts, groups), sigmoid in product(chosen_of, (True, False)):
        given = {"experts": experts, "sigmoid": sigmoid, "groups": groups}
        name = f"choice {experts}{f' in {groups} groups' * (groups > 1)}{' sigmoid' * sigmoid}"
        yield choice_triton.choice_kernel, name, partial(compile_choice, **given)
    for experts in (16, 128):
        given = {"experts": experts, "by_logits": True}
        call = partial(compile_choice, sigmoid=True, **given)
        yield choice_triton.choice_kernel, f"choice {experts} by logits", call
        yield router_triton.router_kernel, f"router {experts} by logits", partial(compile_router, **given)
    for dtype, single, window, sinks in product(TYPES, (True, False), (0, 1, 2), (False, True)):
        given = {"dtype": dtype, "single": single, "window": window, "sinks": sinks}
        name = f"join {dtype} {attention_triton.WINDOWS[window]}{' single' * single}{' sinks' * sinks}"
        yield attention_triton.join_kernel, name, partial(compile_join, **given)
    for head_dim in (64, 80, 512):
        yield attention_triton.join_kernel, f"join {head_dim}", partial(compile_join, head_dim=head_dim)
    for kind, dtype in product(planes_triton.KINDS, TYPES[:2]):
        given = {"kind": kind, "dtype": dtype}
        yield skinny.dequantise_kernel, f"dequantise {kind} {dtype}", partial(compile_dequantise, **given)
    for dtype, size in product(TYPES, RANKS):
        call = partial(compile_one_shot, dtype=dtype, size=size)
        yield one_shot_triton.one_shot_kernel, f"one shot {dtype} {size}", call
