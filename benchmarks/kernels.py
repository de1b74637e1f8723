"""What the kernels for GPUs come to: `python -m benchmarks.kernels [--device cuda:0]`; needs Triton.

Without a device every kernel is compiled for every card: registers a thread, bytes of shared memory a block,
bytes spilt, and the widest load of a weight. From these follow how many blocks a multiprocessor holds, how
many bytes each of their threads waits for, and what share of memory's rate that many allow where a grid fills
a card. It fails where a kernel spills, does not fit, or is launched before the one before it has ended and
does not wait for that first. Tests compile the worst of each sort; all others are left to this, which takes a
core some two hours.

With a device they also run, over the shapes of an 8B model's MLP; figures are shares of the rate at which the
same device copies memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from workers.checkpoints.blocks import FORMATS
from workers.kernels import (
    attention_triton,
    blocks_triton,
    experts_triton,
    grouped,
    grouped_triton,
    planes_triton,
    skinny,
)
from workers.kernels.attention_triton import WINDOWS
from workers.kernels.eight_bits_triton import FP8, INT8, WHOLE
from workers.kernels.gated_triton import NONE
from workers.kernels.launch import DEPENDENT, without_spills
from workers.kernels.pairs import Pairs
from workers.weights.blocks import Blocks


class Card(NamedTuple):
    """What matters here of a card, by NVIDIA's data sheets and the CUDA programming guide's table of
    capabilities.

    Attributes:
        bandwidth: bytes a second of its memory.
        threads: that a multiprocessor holds at most.
        blocks: the same of blocks.
        shared: bytes of shared memory of a multiprocessor.
    """

    name: str
    multiprocessors: int
    bandwidth: float
    threads: int
    blocks: int
    shared: int


CARDS = {  # by compute capability
    80: Card("A100", 108, 1.94e12, 2048, 32, 164 << 10),
    86: Card("3060, 3090", 82, 0.94e12, 1536, 16, 100 << 10),
    89: Card("4090", 128, 1.01e12, 1536, 24, 100 << 10),
    90: Card("H100", 132, 3.35e12, 2048, 32, 228 << 10),
    120: Card("5090", 170, 1.79e12, 1536, 24, 100 << 10),
}
SYSTEM_BYTES = 1 << 10  # of shared memory, that each block has beside its own
SHARED_BYTES = {capability: card.shared - SYSTEM_BYTES for capability, card in CARDS.items()}  # of a block
REGISTERS = 64 << 10  # of a multiprocessor; a warp has them by
REGISTER_UNIT = 256
LATENCY = 700e-9  # seconds from a load to its bytes on a busy card, roughly: 500 on an idle one
TOKENS = (1, 32, 64)
EXPERT_KINDS = (grouped_triton.PLAIN, "Q4_K", "Q6_K", "Q8_0", "MXFP4")
ALIGNED = (  # formats with rows that begin at 16 bytes
    *("Q4_K", "Q5_K", "INT8_128", "FP8_128", "INT8_ROW", "FP8_ROW"),
    *("INT4_32", "INT4_64", "INT4_128", "NVFP4", "NF4_64", "FP4_64"),
)
KEPT = {WHOLE: "", INT8: "int8", FP8: "fp8"}  # keys and values
HEAD_DIMS = (64, 80, 96, 128, 192, 256, 512, 576)  # 576: latent vectors, 512 of which are values
FILLED = 64  # columns, as those of gpt-oss: its rows have 2,880
SHAPES = ((14336, 4096), (4096, 14336))  # rows, columns
# What sees no memory but a launch's arguments, or asks a cache for some, which reads nothing: of what the
# assembler is told, and of what it makes of that.
HARMLESS = re.compile(
    r"(ld\.param|mov|cvt|cvta|add|sub|mul|mad|shl|shr|bfe|and|or|min|max|setp|selp)\.|prefetch\.global\.L2 "
)
HARMLESS_CODE = re.compile(
    r"(LDC|LDCU|ULDC|S2R|S2UR|NOP|CCTL\.E\.PF2"
    r"|U?(MOV|I?ADD3?|IMAD|LEA|LOP3|SHF|SGXT|ISETP|SEL|IMNMX|VIMNMX|VIADDMNMX)|VIADD)\b"
)


@dataclass(frozen=True)
class Compiled:
    """A kernel, and what follows from what the assembler makes of it.

    Attributes:
        kernel: that Triton compiled.
        aligned: whether weights begin where loads of 16 bytes may.
    """

    kernel: CompiledKernel
    aligned: bool

    @property
    def registers(self) -> int:
        """Of a thread."""
        return self.kernel.n_regs

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return self.kernel.metadata.shared

    @property
    def spilt(self) -> int:
        """Bytes of a thread."""
        return 4 * self.kernel.n_spills

    @property
    def load(self) -> int:
        """Bytes of the widest that fetches weights, as the assembler is told: it joins none."""
        bits = {bits for bits in loads(self.kernel.asm["ptx"]) if bits < 128 or self.aligned}
        return max(bits, default=32) // 8

    @cached_property
    def code(self) -> str:
        """Instructions of the card, which take the disassembler half a second."""
        return _tool(self.kernel, "nvdisasm", "-c")

    @property
    def waits_first(self) -> bool:
        """Whether each of its threads waits for what was launched before it ahead of all else: as the
        assembler is told, and as it has it."""
        return is_first(_told(self.kernel.asm["ptx"]), "griddepcontrol.wait", HARMLESS) and is_first(
            _instructions(self.code), "ACQBULK", HARMLESS_CODE
        )

    @property
    def asks(self) -> int:
        """Lines that each of its threads asks a cache for, ahead of its wait or its end."""
        return self.code.partition("ACQBULK")[0].count("CCTL.E.PF2")

    @cached_property
    def loop(self) -> str:
        """Those of its longest loop."""
        return longest_loop(self.code)

    @property
    def card(self) -> Card:
        return CARDS[self.kernel.metadata.target.arch]

    @property
    def blocks(self) -> int:
        """That a multiprocessor holds at once."""
        warps = self.kernel.metadata.num_warps
        warp_registers = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        return min(
            self.card.blocks,
            self.card.threads // (32 * warps),
            REGISTERS // (warp_registers * warps),
            self.card.shared // (self.shared + SYSTEM_BYTES),
        )

    @property
    def waiting(self) -> int:
        """Bytes that a thread waits for at once, at most: those of a step of its longest loop, and of as many
        steps as are fetched ahead."""
        stages = self.kernel.metadata.num_stages
        return _awaited(self.loop, self.registers, stages) or _awaited(self.code, self.registers, 1)

    @property
    def share(self) -> float:
        """Of the memory's rate that so many bytes allow; 1 at most."""
        threads = self.blocks * 32 * self.kernel.metadata.num_warps * self.card.multiprocessors
        return min(threads * self.waiting / LATENCY / self.card.bandwidth, 1.0)

    def __str__(self) -> str:
        """A table's columns."""
        columns = self.registers, self.shared, self.spilt, self.load, self.blocks, self.waiting
        return f"{' | '.join(map(str, columns))} | {self.share:.0%}"


def compile_for(
    capability: int,
    kernel: Any,
    kinds: dict[str, str],
    constants: dict[str, Any],
    aligned: Iterable[str],
    **options: int | None,
) -> CompiledKernel:
    """A kernel for cards of that capability, as `workers.kernels.launch.Launcher` has it; needs no device.

    Args:
        kinds: of its arguments, by name.
        aligned: arguments that begin at 16 bytes, or are multiples of 16.
        options: of the launch, as Triton calls them.
    """
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: kinds.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    registers, num_warps = options.pop("maxnreg", None), options.setdefault("num_warps", 4)
    options["launch_pdl"] = capability >= DEPENDENT

    def build(registers: int | None) -> CompiledKernel:
        given = options | {"maxnreg": registers}
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=given)
        usage = _tool(kernel, "cuobjdump", "-res-usage")
        kernel.n_regs, *spilt = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage).groups())
        kernel.n_spills = sum(spilt) // 4  # as a device tells it
        return kernel

    return without_spills(build, registers, num_warps)


def compile_product(capability: int, kind: str, tokens: int, dtype: str = "bf16") -> Compiled:
    """The product with weights of that format."""
    groups, block_m, block_n, warps = blocks_triton.tiles(tokens, 4 if dtype == "fp32" else 2)
    pointers = dict.fromkeys(("x", "bias", "y"), f"*{dtype}") | {"w": "*u8", "table": "*fp32"}
    numbers = dict.fromkeys(("tokens", "num_rows", "columns", "row_bytes"), "i32")
    constants = {"KIND": kind, "HAS_BIAS": False, "GROUPS": groups, "BLOCK_M": block_m, "BLOCK_N": block_n}
    aligned = [*pointers, "columns", *["row_bytes"] * (kind in ALIGNED)]
    given = blocks_triton.product_kernel, pointers | numbers, constants, aligned
    kernel = compile_for(capability, *given, num_warps=warps, num_stages=blocks_triton.STAGES)
    return Compiled(kernel, kind in ALIGNED)


def compile_skinny(
    capability: int,
    kind: str,
    tokens: int,
    dtype: str = "bf16",
    activation: int = NONE,
    asks: bool = True,
    filled: int = 0,
) -> Compiled:
    """The product of few tokens with a weight in planes, or plain."""
    shape = skinny.shape_of(tokens, kind, activation != NONE)
    pointers = dict.fromkeys(("x", "bias", "y"), f"*{dtype}") | {"parts": "*fp32", "done": "*i32"}
    pointers["w"] = f"*{dtype}" if kind == experts_triton.PLAIN else "*u8"
    numbers = dict.fromkeys(("tokens", "num_rows", "columns", "row_stride", "split_steps"), "i32")
    constants = {"KIND": kind, "HAS_BIAS": False, "SPLIT": True, "BLOCK_N": shape.rows, "N": shape.tokens}
    constants |= {"ACTIVATION": activation, "INTERLEAVED": False}
    constants["FILLED"], constants["ASKS"] = filled, asks and activation == NONE
    aligned = [*pointers, "columns", "num_rows", "row_stride"]
    return _few(capability, skinny.product_kernel, pointers | numbers, constants, aligned, shape)


def compile_few_experts(
    capability: int, kind: str, tokens: int, dtype: str = "bf16", activation: int = NONE, filled: int = 0
) -> Compiled:
    """The same of so many tokens an expert; with an activation their first product, else their last."""
    shape = experts_triton.shape_of(tokens, kind)
    pointers = dict.fromkeys(("x", "bias", "y"), f"*{dtype}") | {"parts": "*fp32", "done": "*i32"}
    pointers |= {"order": "*i64", "starts": "*i32", "scales": "*fp32"}
    pointers["w"] = f"*{dtype}" if kind == experts_triton.PLAIN else "*u8"
    sizes = ("num_rows", "columns", "row_stride", "y_stride")
    numbers = dict.fromkeys((*sizes, "pairs", "experts", "split_steps"), "i32")
    constants = {"KIND": kind, "HAS_BIAS": True, "CHOSEN": 8, "SPLIT": True, "EXPERTS": 128}
    constants |= {"BLOCK_N": shape.rows, "N": shape.tokens, "FILLED": filled}
    constants |= {"SCALED": activation == NONE, "ACTIVATION": activation, "INTERLEAVED": activation == 3}
    aligned = [*pointers, *sizes]
    return _few(capability, experts_triton.experts_kernel, pointers | numbers, constants, aligned, shape)


def _few(capability: int, kernel: Any, *given: Any) -> Compiled:
    kinds, *given, shape = given
    kinds = kinds | dict.fromkeys(("alpha", "limit"), "fp32")
    warps = 1 if shape.tokens <= skinny.FEW.value else skinny.WARPS
    options = {"num_warps": warps, "num_stages": shape.stages, "maxnreg": shape.registers}
    return Compiled(compile_for(capability, kernel, kinds, *given, **options), True)


def is_first(instructions: Iterable[str], wanted: str, harmless: re.Pattern[str]) -> bool:
    """Whether that instruction comes, without a condition, and nothing before it but what is harmless."""
    others = (each for each in instructions if not harmless.match(each))
    return next(others, "") == wanted


def _told(ptx: str) -> Iterator[str]:
    """What a kernel tells the assembler to do, and its labels but those of debuggers."""
    body = ptx.partition(".entry")[2].partition("{")[2]
    for line in body.splitlines():
        for part in line.partition("//")[0].split(";"):
            told = part.strip()
            if told and not re.match(r"\.|\$L__(tmp|func_begin)\d+:", told):
                yield told


def _instructions(code: str) -> list[str]:
    """Those of a card, without what some disassemblers add of how long each of them waits."""
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*(?:[&?].*)?;", code, re.M)


def longest_loop(code: str) -> str:
    """Instructions from a label to the last branch back to it: of all such the most, one a line."""
    lines, labels, longest = [], {}, []
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            lines.append(found[1])
            back = re.search(r"\bBRA\b.*?(\.L_x_\d+)", found[1])
            if back and back[1] in labels:
                longest = max(longest, lines[labels[back[1]] :], key=len)
    return "\n".join(longest)


def compile_experts(capability: int, kind: str, tokens: int, dtype: str = "bf16") -> Compiled:
    """The product of so many tokens an expert; of `PLAIN`, with weights in the type of inputs."""
    groups, block_m, block_n, warps = grouped_triton.tiles(kind, tokens, 4 if dtype == "fp32" else 2)
    is_plain = kind == grouped_triton.PLAIN
    pointers = dict.fromkeys(("x", "bias", "y"), f"*{dtype}")
    pointers |= {"w": f"*{dtype}" if is_plain else "*u8", "table": "*fp32", "scales": "*fp32"}
    pointers |= {"order": "*i64", "starts": "*i32"}
    numbers = dict.fromkeys(("num_rows", "columns", "row_size", "y_stride", "experts"), "i32")
    constants = {"KIND": kind, "HAS_BIAS": True, "SCALED": True, "CHOSEN": 8, "EVEN": True, "EXPERTS": 128}
    constants |= {"GROUPS": groups, "BLOCK_M": block_m, "BLOCK_N": block_n}
    aligned = [*pointers, "columns", "num_rows", "y_stride", *["row_size"] * (is_plain or kind in ALIGNED)]
    given = grouped_triton.grouped_kernel, pointers | numbers, constants, aligned
    kernel = compile_for(capability, *given, num_warps=warps, num_stages=grouped_triton.STAGES)
    return Compiled(kernel, is_plain or kind in ALIGNED)


def loads(ptx: str) -> Iterator[int]:
    """Bits of each load from a card's memory, to registers or to shared memory."""
    for count, bits in re.findall(r"\bld(?:\.volatile)?\.global\b[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)\s", ptx):
        yield int(count or 1) * int(bits)
    for size in re.findall(r"\bcp\.async\.c[ag]\.shared\.global\S*\s+\[.*?\],\s*\[.*?\],\s*(\w+)", ptx):
        yield 8 * int(size, 0)


def _awaited(code: str, registers: int, stages: int) -> int:
    """Bytes that a thread's loads in a step of a loop fetch: to registers, or to shared memory, ahead."""
    total = {"": 0, "STS": 0}
    for target, kind in re.findall(r"\bLDG(STS)?\.E((?:\.\w+)*)", code):
        found = re.search(r"\.[US]?(8|16|64|128)\b", kind)
        total[target] += int(found[1] if found else 32) // 8
    return min(total[""], 4 * registers) + total["STS"] * max(stages - 1, 1)


def _tool(kernel: CompiledKernel, tool: str, option: str) -> str:
    """What a tool of CUDA's says of it."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tools / tool), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def seconds(device: str, call: object, repeats: int = 20) -> float:
    """Of one call on the device, the least of some."""
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        best = min(best, start.elapsed_time(end) / 1000)
    return best


def memory_rate(device: str) -> float:
    """Bytes a second that the device reads and writes when it copies."""
    big = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    return 2 * big.nbytes / seconds(device, lambda: big.clone())


def measure(device: str, rate: float) -> None:
    """Print what products take, and what share of the device's memory rate that is."""
    print(f"copying {rate / 1e9:.0f} GB/s\n\n| format | rows x columns | tokens | µs | of memory's rate |")
    print("|---|---|---|---|---|")
    for kind in blocks_triton.KINDS:
        for rows, columns in SHAPES:
            form = FORMATS[kind]
            data = torch.zeros(rows, form.row_bytes(columns), dtype=torch.uint8, device=device)
            weight = Blocks(form, data, torch.bfloat16)
            for tokens in TOKENS:
                x = torch.randn(tokens, columns, dtype=torch.bfloat16, device=device)
                took = seconds(device, lambda x=x, weight=weight: blocks_triton.product(x, weight, None))
                share = weight.nbytes / took / rate
                print(f"| {kind} | {rows} x {columns} | {tokens} | {took * 1e6:.0f} | {share:.0%} |")


def measure_experts(device: str, rate: float) -> None:
    """The same of both products of a layer of Qwen3-30B-A3B, by what its experts take of memory's rate."""
    hidden, inner, count, chosen = 2048, 768, 128, 8
    print(
        "\n| format | rows x columns | tokens | experts | µs | of memory's rate |\n|---|---|---|---|---|---|"
    )
    for kind in EXPERT_KINDS:
        for rows, columns, is_last in ((2 * inner, hidden, False), (hidden, inner, True)):
            if kind == grouped_triton.PLAIN:
                weight = torch.zeros(count * rows, columns, dtype=torch.bfloat16, device=device)
            else:
                form = FORMATS[kind]
                data = torch.zeros(count * rows, form.row_bytes(columns), dtype=torch.uint8, device=device)
                weight = Blocks(form, data, torch.bfloat16)
            for tokens in (1, 8, 32, 512):
                scores = torch.rand(tokens, count, device=device)
                numbers = scores.topk(chosen, dim=-1).indices.flatten()
                pairs = Pairs.of(numbers, count, chosen)
                x = torch.randn(len(numbers) if is_last else tokens, columns, device=device).bfloat16()
                y = x.new_empty(len(numbers), rows)
                scales = torch.rand(len(numbers), device=device) if is_last else None
                call = partial(grouped.product, x, weight, None, pairs, y, scales)
                took, found = seconds(device, call), len(numbers.unique())
                share = weight.nbytes * found / count / took / rate
                size = f"{rows} x {columns} | {tokens} | {found}"
                print(f"| {kind} | {size} | {took * 1e6:.0f} | {share:.0%} |")


def kernels() -> Iterator[tuple[Any, str, Callable[[int], Compiled]]]:
    """Kernel, name of a variant, and what compiles that for a capability, of every shape in use."""
    from benchmarks import small_kernels  # all of which have what is above
    from benchmarks.attention import TOKENS as SORTS
    from benchmarks.attention import compile_attention
    from benchmarks.states import NAMES, compile_kernel, kernel_of

    yield from small_kernels.kernels()
    for name, mixed, silu in product(NAMES, small_kernels.TYPES, (True, False)):
        if (mixed, silu) != ("bf16", True) and (name not in ("convolve", "keep_inputs")):
            continue  # there is no other
        call = partial(compile_kernel, name=f"{name}_kernel", mixed=mixed, silu=silu)
        yield (
            *(kernel_of(f"{name}_kernel"), f"states {name} {mixed}{' silu' * silu}"),
            lambda card, call=call: Compiled(call(card), False),
        )
    for kind, tokens, dtype in product(blocks_triton.KINDS, TOKENS, small_kernels.TYPES):
        call = partial(compile_product, kind=kind, tokens=tokens, dtype=dtype)
        yield blocks_triton.product_kernel, f"product {kind} {tokens} {dtype}", call
    for kind, tokens, dtype in product(EXPERT_KINDS, TOKENS, small_kernels.TYPES):
        call = partial(compile_experts, kind=kind, tokens=tokens, dtype=dtype)
        yield grouped_triton.grouped_kernel, f"experts {kind} {tokens} {dtype}", call
    gated = {NONE: "", 0: " gated"}
    for kind, tokens, dtype, how in product(planes_triton.KINDS, (1, 8, 16), ("bf16", "fp16"), gated):
        if tokens == 8 and not skinny.alone(kind):
            continue  # as for one
        call = partial(compile_skinny, kind=kind, tokens=tokens, dtype=dtype, activation=how)
        yield skinny.product_kernel, f"few rows {kind} {tokens} {dtype}{gated[how]}", call
    for kind, tokens in product(planes_triton.KINDS, (32, 64)):
        if skinny.shape_of(tokens, kind).tokens < tokens:
            continue  # the programs are those of fewer tokens
        call = partial(compile_skinny, kind=kind, tokens=tokens)
        yield skinny.product_kernel, f"some rows {kind} {tokens}", call
    for kind, tokens, dtype, how in product(
        (*planes_triton.KINDS, experts_triton.PLAIN), (1, 8, 16), ("bf16", "fp16"), gated
    ):
        if tokens == 8 and not skinny.alone(kind):
            continue
        call = partial(compile_few_experts, kind=kind, tokens=tokens, dtype=dtype, activation=how)
        name = f"few rows of experts {kind} {tokens} {dtype}{gated[how]}"
        yield experts_triton.experts_kernel, name, call
    narrow = [each for each in planes_triton.KINDS if FORMATS[each].elements <= FILLED]
    for kind, tokens, how in product((*narrow, experts_triton.PLAIN), (1, 8, 16), gated):
        if tokens == 8 and not skinny.alone(kind):
            continue
        given = {"kind": kind, "tokens": tokens, "activation": how, "filled": FILLED}
        name = f"{kind} {tokens} bf16{gated[how]} of 2,880 columns"
        yield (
            experts_triton.experts_kernel,
            f"few rows of experts {name}",
            partial(compile_few_experts, **given),
        )
        if kind in narrow:
            yield skinny.product_kernel, f"few rows {name}", partial(compile_skinny, **given)
    for kept, head_dim, tokens in product(KEPT, HEAD_DIMS, SORTS):
        for window, special in product((0, 1), (False, True)):
            if head_dim == 576 and (kept or window or special):
                continue  # latent vectors are kept whole, and seen by all that come later
            name = f"attention {tokens} {head_dim} {KEPT[kept]} {WINDOWS[window]}{' special' * special}"
            how = {"tokens": tokens, "head_dim": head_dim, "window": window, "special": special, "kind": kept}
            yield attention_triton.attention_kernel, name, partial(compile_attention, **how)
    for kept, dtype, tokens in product(KEPT, ("fp16", "fp32"), SORTS):
        how = {"tokens": tokens, "head_dim": 128, "dtype": dtype, "kind": kept}
        call = partial(compile_attention, **how)
        yield attention_triton.attention_kernel, f"attention {tokens} 128 {KEPT[kept]} {dtype}", call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="cuda:N, to run on as well")
    parser.add_argument("--only", default="", help="kernels whose name and capability this regex finds")
    given = parser.parse_args()
    device = given.device
    print(
        "| kernel | card | registers | shared | spilt | load | blocks | bytes a thread | of memory's rate |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    faults = []
    for _, name, compile_one in kernels():
        for capability, card in CARDS.items():
            if not re.search(given.only, f"{name} {capability}"):
                continue
            found = compile_one(capability)
            print(f"| {name} | {card.name} | {found} |", flush=True)
            races = capability >= DEPENDENT and not found.waits_first
            if found.spilt or found.shared > SHARED_BYTES[capability] or races:
                faults.append(f"{name} on {card.name}: {found}{', and does not wait first' * races}")
    print("\n".join(["", *faults] if faults else ["\nNone spills, all fit, and all wait first."]))
    if device is not None:
        rate = memory_rate(device)
        measure(device, rate)
        measure_experts(device, rate)
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
