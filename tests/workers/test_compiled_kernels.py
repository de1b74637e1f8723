"""Every kernel that a GPU is to run is one that `benchmarks.kernels` compiles; the small ones are, here."""

from __future__ import annotations

import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import workers.kernels
from workers.kernels.launch import DEPENDENT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="torch for the CPU has no Triton")


NAMES = [each.name for each in pkgutil.iter_modules(workers.kernels.__path__) if each.name[0] != "_"]
FOLDER = Path(workers.kernels.__file__).parent
LAUNCHING = [name for name in NAMES if "import Launcher" in (FOLDER / f"{name}.py").read_text()]


def launched():
    """Kernels that no other calls: these there are to be launched."""
    from triton.runtime.jit import JITFunction

    modules = [importlib.import_module(f"workers.kernels.{name}") for name in NAMES]
    found = {each for module in modules for each in vars(module).values() if isinstance(each, JITFunction)}
    called = {id(each.fn.__globals__.get(name)) for each in found for name in each.fn.__code__.co_names}
    return {each for each in found if id(each) not in called}


def test_no_kernel_that_is_launched_is_forgotten_where_all_are_compiled():
    from benchmarks.kernels import kernels

    compiled = {kernel for kernel, _, _ in kernels()}
    assert {each.__module__ for each in compiled} == {f"workers.kernels.{name}" for name in LAUNCHING}
    assert launched() == compiled


SMALL = [  # of each the variants whose code is least like that of the others
    ("write", 80, {"kind": 1}),
    ("write", 86, {"kind": 2, "dtype": "fp32"}),
    ("write", 90, {"with_values": False, "head_dim": 576}),
    ("heads", 86, {"kind": 1, "turn": 5}),
    ("heads", 90, {"kind": 2, "turn": 3, "dtype": "fp16"}),
    ("latent", 89, {"rank": 256}),
    ("latent", 120, {"interleaved": False, "dtype": "fp32"}),
    ("norm", 120, {"before": False, "after": True, "dtype": "fp32"}),
    *(("gated", 80, {"activation": 1}), ("gated", 89, {"activation": 2})),
    *(("decay", 86, {"dtype": "fp16"}), ("gated_norm", 80, {"size": 256})),
    ("chosen", 89, {"chosen": 10, "dtype": "fp32"}),
    ("pairs", 86, {"experts": 512}),
    ("router", 86, {"experts": 512, "chosen": 16}),
    ("router", 120, {"experts": 8, "chosen": 1, "tokens": 1, "dtype": "fp32"}),
    ("gated", 86, {"activation": 3, "interleaved": True}),
    ("router", 80, {"experts": 256, "groups": 8}),
    ("choice", 80, {"experts": 512, "sigmoid": True}),
    ("choice", 120, {"sigmoid": True, "by_logits": True}),
    ("choice", 89, {"experts": 160, "groups": 8, "chosen": 6}),
    ("choice", 90, {"experts": 256, "sigmoid": True, "groups": 8}),
    ("join", 89, {"window": 2, "sinks": True, "single": False, "head_dim": 80}),
    *(("one_shot", 86, {"size": 8}), ("one_shot", 120, {"size": 3, "dtype": "fp32"})),
    ("dequantise", 120, {"kind": "NVFP4", "dtype": "fp16"}),
]


@pytest.mark.parametrize(("name", "capability", "variant"), SMALL)
def test_a_small_kernel_fits_its_card_and_spills_nothing(name, capability, variant):
    from benchmarks import small_kernels
    from benchmarks.kernels import SHARED_BYTES

    if "turn" in variant:
        variant = variant | {"turn": small_kernels.TURNS[variant["turn"]]}
    found = getattr(small_kernels, f"compile_{name}")(capability, **variant)
    assert found.shared <= SHARED_BYTES[capability]
    assert found.spilt == 0
    assert found.blocks >= 1


@pytest.mark.parametrize(
    ("name", "capability", "variant"),
    [
        ("write", 86, {"head_dim": 64}),
        ("write", 90, {"head_dim": 128}),
        ("heads", 120, {"head_dim": 64}),
        ("norm", 80, {}),
        *(("gated", 89, {}), ("gated", 80, {"activation": 3, "interleaved": True})),
        *(("chosen", 86, {}), ("join", 90, {}), ("dequantise", 120, {"kind": "Q6_K"})),
    ],
)
def test_a_small_kernel_that_reads_rows_loads_16_bytes_at_a_time(name, capability, variant):
    from benchmarks import small_kernels

    assert getattr(small_kernels, f"compile_{name}")(capability, **variant).load == 16


@pytest.mark.parametrize("capability", [90, 120])
@pytest.mark.parametrize("name", LAUNCHING)
def test_every_kernel_waits_for_what_came_before_it_ahead_of_all_else(name, capability):
    from benchmarks.kernels import kernels

    seen = set()
    for kernel, _, compile_one in kernels():
        if kernel.__module__ != f"workers.kernels.{name}" or kernel in seen:
            continue
        seen.add(kernel)
        found = compile_one(capability)
        assert found.kernel.metadata.launch_pdl
        assert found.waits_first, kernel.__name__
    assert seen == {each for each in launched() if each.__module__ == f"workers.kernels.{name}"} != set()


ASKED = {("PLAIN", 1): 2, ("Q4_K", 1): 3, ("FP8_128", 8): 2, ("INT4_128", 1): 3, ("Q6_K", 1): 5}  # lines


@pytest.mark.parametrize("capability", [90, 120])
@pytest.mark.parametrize(("kind", "tokens"), ASKED)
def test_a_product_asks_for_its_first_weights_before_it_waits_and_has_room_as_without(
    kind, tokens, capability
):
    from benchmarks.kernels import compile_skinny
    from workers.kernels import skinny

    asking, silent = (compile_skinny(capability, kind, tokens, asks=asks) for asks in (True, False))
    assert asking.waits_first
    assert silent.waits_first
    assert (asking.asks, silent.asks) == (ASKED[kind, tokens], 0)
    for text in (
        asking.kernel.asm["ptx"].partition("griddepcontrol.wait")[2],
        asking.code.partition("ACQ")[2],
    ):
        assert not re.search(r"prefetch\.global|CCTL\.E\.PF", text)
    assert asking.spilt == silent.spilt == 0
    assert asking.blocks >= min(silent.blocks, skinny.shape_of(tokens, kind).warps)


@pytest.mark.parametrize("capability", [80, 86, 89])
def test_cards_without_dependent_launches_have_no_word_of_them(capability):
    from benchmarks.kernels import compile_skinny
    from benchmarks.small_kernels import compile_norm

    assert capability < DEPENDENT
    for found in (compile_norm(capability), compile_skinny(capability, "Q4_K", 1)):
        assert not found.kernel.metadata.launch_pdl
        assert not re.search(r"griddepcontrol|prefetch\.global", found.kernel.asm["ptx"])
        assert not found.waits_first
        assert found.asks == 0


@pytest.mark.parametrize("name", ["forgets", "reads", "writes", "returns", "chooses"])
def test_a_kernel_that_does_not_wait_or_not_at_once_is_found_out(name):
    from benchmarks.kernels import Compiled, compile_for
    from tests.workers import late_kernels

    kinds = {"x": "*fp32", "y": "*fp32", "n": "i32"}
    kernel = compile_for(90, getattr(late_kernels, name), kinds, {}, ["x", "y"], num_warps=1)
    assert kernel.metadata.launch_pdl
    assert not Compiled(kernel, True).waits_first


def test_nothing_is_ahead_of_what_is_first():
    from benchmarks.kernels import HARMLESS, HARMLESS_CODE, is_first

    wait = "griddepcontrol.wait"
    assert is_first(["ld.param.b64 %rd6, [x]", "mov.u32 %r1, %tid.x", wait, "ret"], wait, HARMLESS)
    asks = ["mad.wide.s32 %rd1, %r1, %r2, %rd3", "min.s32 %r4, %r5, %r6", "prefetch.global.L2 [%rd1]"]
    assert is_first([*asks, "mov.b32 %r1, 0", wait], wait, HARMLESS)
    for early in (
        *(
            "prefetch.global.L1 [%rd1]",
            "prefetchu.L1 [%rd1]",
            "applypriority.global.L2::evict_normal [%rd1], 128",
        ),
        *("discard.global.L2 [%rd1], 128", "cp.async.bulk.prefetch.L2.global [%rd1], 16", "atom.add.u32 %r1"),
    ):
        assert not is_first([*asks, early, wait], wait, HARMLESS), early
    for early in ("ld.global.b32 {%r1}, [%rd1]", "@%p1 bra $L__BB0_2", "$L__BB0_1:", "ret", "st.shared.b32"):
        assert not is_first([early, wait], wait, HARMLESS), early
    assert not is_first([f"@%p1 {wait}"], wait, HARMLESS)
    assert not is_first([], wait, HARMLESS)
    assert is_first(["LDC R1, c[0x0][0x28]", "ACQBULK", "EXIT"], "ACQBULK", HARMLESS_CODE)
    asks = [
        "IMAD.WIDE R2, R2, R5, RZ",
        "UIADD3 UR4, UR4, -0x1, URZ",
        "VIMNMX R2, R2, UR4, PT",
        "CCTL.E.PF2 [R2]",
    ]
    assert is_first([*asks, "ACQBULK", "EXIT"], "ACQBULK", HARMLESS_CODE)
    for early in (
        "CCTL.IVALL",
        "CCTL.E.PF1 [R2]",
        "MOVM.16.MT88 R2, R2",
        "LDG.E R4, desc[UR4][R2.64]",
        "LDGSTS.E [R5], desc[UR4][R6.64]",
        "@P0 EXIT",
        "BRA `(.L_x_1)",
    ):
        assert not is_first([early, "ACQBULK"], "ACQBULK", HARMLESS_CODE), early
    assert not is_first(["@!P0 ACQBULK"], "ACQBULK", HARMLESS_CODE)


def test_what_one_line_tells_the_assembler_is_seen_one_by_one():
    from benchmarks.kernels import _told

    ptx = ".entry k() {\n\tprefetch.global.L2 [%rd1]; ld.global.b32 %r1, [%rd1]; // ;\n\tret;\n}"
    assert [*_told(ptx)] == ["prefetch.global.L2 [%rd1]", "ld.global.b32 %r1, [%rd1]", "ret", "}"]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_what_ranks_tell_each_other_passes_all_caches_in_words_that_are_whole(capability):
    """As the system sees it, in the code of every generation: the assembly asks for no less, but says no more
    of a store than that it is written through."""
    from benchmarks.small_kernels import compile_one_shot

    found = compile_one_shot(capability, "fp16" if capability == 86 else "bf16", size=4)
    assert found.spilt == 0
    assert found.load == 16
    code = found.code
    assert len(re.findall(r"\bSTG\.E\.128\.STRONG\.SYS\b", code)) == 1
    assert len(re.findall(r"\bLDG\.E\.128\.STRONG\.SYS\b", code)) == 2 * 4  # once, and in the loop
    assert not re.findall(r"\b(?:ATOM\w*|RED)\b", code)
    assert "cvt.rn." in found.kernel.asm["ptx"]


@pytest.mark.parametrize("capability", [80, 120])
def test_what_a_thread_waits_for_is_read_from_the_code_of_every_generation(capability):
    from benchmarks.small_kernels import compile_norm

    found = compile_norm(capability)
    assert found.waiting >= 16
    assert 0 < found.share <= 1


def test_the_widest_load_is_that_of_the_assembly():
    from benchmarks.kernels import loads

    code = """
        ld.param.b64 %rd1, [norm_kernel_param_0];
        @%p1 ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd2 + 0 ];
        ld.global.b8 {%rs1}, [%rd3];
        ld.volatile.global.v2.b64 { %rd7, %rd8 }, [ %rd9 + 0 ];
        ld.global.v2.b64 { %rd5, %rd6 }, [ %rd2 + 16 ];
        cp.async.cg.shared.global [ %r5 + 0 ], [ %rd4 + 0 ], 0x10, %r6;
        st.global.v4.b32 [ %rd7 + 0 ], { %r1, %r2, %r3, %r4 };
    """
    assert [*loads(code)] == [128, 8, 128, 128, 128]


def test_bytes_that_a_thread_waits_for_are_those_of_its_loads():
    from benchmarks.kernels import _awaited

    code = """
        LDG.E.128 R4, desc[UR4][R2.64] ;
        LDG.E R4, desc[UR4][R2.64+0x10] ;
        LDG.E.U8.CONSTANT R9, desc[UR4][R2.64+0x20] ;
        LDGSTS.E.BYPASS.128 [R5], desc[UR4][R6.64] ;
        STG.E.128 desc[UR4][R6.64], R4 ;
    """
    assert _awaited(code, 255, 1) == 16 + 4 + 1 + 16
    assert _awaited(code, 255, 4) == 16 + 4 + 1 + 3 * 16
    assert _awaited(code, 4, 1) == 4 * 4 + 16
