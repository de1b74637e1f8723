"""In a process that interprets: how far products in planes are from torch's."""

from __future__ import annotations

from itertools import product

import torch
import triton
from triton import language as tl

from tests.workers.random_blocks import weight_of
from workers.checkpoints.experts import Clamp
from workers.kernels.gates import Gates
from workers.kernels.skinny import LINE, Shape, first_lines


def errors(kinds: list[str]) -> dict[str, float]:
    from workers.kernels import skinny
    from workers.weights.blocks import Blocks

    apart = {}
    generator = torch.Generator().manual_seed(1)
    for kind in kinds:
        # in two parts, with rows and tokens that are no whole program and a bias; and of some in one part
        cases = [(9, 17, 256, Shape(16, 32, 16))]
        if few := skinny.alone(kind):  # two programs of them
            cases.append((few + 1, 17, 256, Shape(few, 32, 16)))
        if kind in ("Q4_K", "FP8_128"):
            cases += [(1, 16, 256, Shape(8, 16, 0)), (19, 17, 256, Shape(32, 64, 16))]
        for tokens, rows, columns, shape in cases:
            weight = weight_of(kind, rows, columns)
            data = Blocks(weight.format, weight.data.clone(), torch.float16).to_planes().data
            x = torch.randn(tokens, columns, generator=generator).half()
            bias = torch.randn(rows, generator=generator).half() if tokens > 1 else None
            y = skinny.product(x, data, kind, bias, shape=shape).float()
            expected = x.float() @ weight.float().t()
            expected = expected if bias is None else expected + bias.float()
            apart[f"{kind} {tokens}"] = float((y - expected).norm() / expected.norm())
        wide = skinny.dequantise(data, kind, columns, torch.float16)
        apart[f"{kind} whole"] = float((wide.float() - weight.float().half().float()).abs().max())
    assert not skinny.counters(x.device).any()
    return apart


def errors_of_filled_steps(kinds: list[str]) -> dict[str, float]:
    """The same of rows that are no whole steps, beside a token that is infinite: it stands where their last
    step would go on."""
    from workers.kernels import skinny
    from workers.weights.blocks import Blocks

    apart, tokens, rows = {}, 5, 17
    generator = torch.Generator().manual_seed(1)
    others = torch.arange(tokens) != 1
    for kind in kinds:
        shapes = [Shape(16, 32, 16)]
        if few := skinny.alone(kind):
            shapes.append(Shape(few, 32, 16))
        if kind in ("MXFP4", "INT8_ROW"):
            shapes.append(Shape(32, 64, 16))
        for columns in (192, 160) if kind in ("PLAIN", "MXFP4") else (192,):
            x = torch.randn(tokens, columns, generator=generator).half()
            x[1] = torch.inf
            if kind == "PLAIN":
                data = plain = torch.randn(rows, columns, generator=generator).half()
                data[5] = torch.inf
            else:
                plain = weight_of(kind, rows, columns)
                whole = Blocks(plain.format, plain.data.clone(), torch.float16).to_planes()
                data = whole.data
                assert whole.shape == plain.shape
                wide = skinny.dequantise(data, kind, columns, torch.float16).float()
                apart[f"{kind} {columns} whole"] = float((wide - plain.float().half().float()).abs().max())
            expected = x.float() @ plain.float().t()
            for shape in shapes:
                y = skinny.product(x, data, kind, None, shape=shape).float()
                difference, seen = (
                    part[others][:, torch.arange(rows) != 5] for part in (y - expected, expected)
                )
                apart[f"{kind} {columns} {shape.tokens}"] = float(difference.norm() / seen.norm())
    return apart


@triton.jit
def _keep_lines(
    w,
    found,  # [parts, programs, addresses] int64
    num_rows,
    columns,
    row_stride,
    split_steps,
    PLANE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    begin = tl.program_id(1) * split_steps * 128
    at = first_lines(w, num_rows, columns, row_stride, begin, split_steps, PLANE, KIND, BLOCK_N)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(found + program * at.shape[0] + tl.arange(0, at.shape[0]), at.to(tl.int64))


def steps_without_what_is_asked_for(kinds: list[str]) -> list[str]:
    """Programs whose first step is another where memory has only the lines that they ask for, or that ask for
    what is not the weight's."""
    from workers.kernels.planes_triton import PLANES
    from workers.weights.blocks import Blocks

    wrong, rows, columns, parts, steps = [], 17, 768, 2, 4  # of the second part there are only two
    for kind in kinds:
        weight = weight_of(kind, rows, columns)
        data = Blocks(weight.format, weight.data.clone(), torch.float16).to_planes().data
        stride, width = data.stride(0), data.shape[1]
        whole = weight.float()
        for block in (16, 32):
            found = []
            for plane in range(len(PLANES[kind])):
                at = torch.zeros(parts, -(-rows // block), block * (1 + (plane == 0)), dtype=torch.int64)
                sizes = rows, columns, stride, steps
                _keep_lines[at.shape[1], parts, 1](data, at, *sizes, plane, kind, block)
                found.append(at - data.data_ptr())
            for part, program in product(range(parts), range(at.shape[1])):
                mine, begin = slice(program * block, min((program + 1) * block, rows)), part * steps * 128
                at = torch.cat([each[part, program] for each in found])
                row, byte = at // stride, at % stride
                kept = torch.isin(torch.arange(rows * stride) // LINE.value, at // LINE.value)
                kept = kept.view(rows, stride)[:, :width]
                seen = Blocks(weight.format, torch.where(kept, data, 0)[mine], torch.float16, True).float()
                inside = (row >= mine.start) & (row < mine.stop) & (byte < width)
                numbers = found[0][part, program] % stride
                inside &= (numbers < min(6, (part + 1) * steps) * PLANES[kind][0]).all()
                step = slice(begin, begin + 128)
                if not inside.all() or not torch.equal(seen[:, step], whole[mine, step]):
                    wrong.append(f"{kind} {block} {part} {program}")
    return wrong


def errors_of_experts() -> dict[str, float]:
    """The same of experts' products; places of pairs are to be those of torch's sort."""
    from workers.kernels import experts_triton, grouped, pairs_triton, skinny
    from workers.kernels.pairs import Pairs
    from workers.weights.blocks import Blocks

    generator = torch.Generator().manual_seed(1)
    for count, pairs in ((5, 1), (128, 40), (3, 100)):
        numbers = torch.randint(count + 1, (pairs,), generator=generator)
        expected = Pairs.of(numbers, count, 1)
        order, starts = pairs_triton.sorted_pairs(numbers, count)
        assert torch.equal(order, expected.order)
        assert torch.equal(starts, expected.starts)

    apart, rows = {}, 24
    numbers = torch.tensor(
        [[0, 1], [1, 3], [3, 0], [1, 0], [4, 3], [3, 1]]
    )  # of 5 experts, 4: another rank's
    pairs = Pairs.of(numbers.flatten(), 4, 2)
    for kind, columns in (("PLAIN", 256), ("Q6_K", 256), ("PLAIN", 160), ("MXFP4", 160)):
        for is_last in (False, True):
            x = torch.randn(12 if is_last else 6, columns, generator=generator).half()
            weight = plain = torch.randn(4 * rows, columns, generator=generator).half()
            if kind != "PLAIN":
                plain = weight_of(kind, 4 * rows, columns)
                weight = Blocks(plain.format, plain.data.clone(), torch.float16).to_planes()
            bias = torch.randn(4, rows, generator=generator).half()
            scales = torch.rand(12, generator=generator) if is_last else None
            found, expected = (torch.full((12, rows), 7.0).half() for _ in range(2))
            shape = Shape(skinny.alone(kind) or 8, 32, 16 * (not is_last))
            experts_triton.product(x, weight, bias, pairs, found, scales, None, shape=shape)
            grouped.reference(x, plain, bias, pairs, expected, scales)
            difference = (found.float() - expected.float()).norm() / expected.float().norm()
            apart[f"{kind} {columns} {is_last}"] = float(difference)
    return apart


def opened() -> list[float]:
    """How far what gates open where a product ends is from what they open behind it; of halves that are no
    whole program, in one part and in two. An interpreter's exponentials differ by a last bit."""
    from workers.kernels import experts_triton, fused, skinny
    from workers.kernels.pairs import Pairs
    from workers.weights.blocks import Blocks

    generator = torch.Generator().manual_seed(1)

    def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours.float() - theirs.float()).abs().max())

    clamp, columns, found = Clamp(alpha=1.702, limit=1.0), 256, []
    numbers = torch.tensor(
        [[0, 1], [1, 3], [3, 0], [1, 0], [4, 3], [3, 1]]
    )  # of 5 experts, 4: another rank's
    pairs = Pairs.of(numbers.flatten(), 4, 2)
    for gates, rows in product((Gates("silu"), Gates("gelu_tanh"), Gates(clamp, interleaved=True)), (34, 6)):
        for kind, tokens, shape in (
            ("PLAIN", 6, Shape(8, 16, 0)),
            ("PLAIN", 6, Shape(16, 32, 16)),
            ("Q4_K", 1, Shape(2, 32, 16)),
            ("FP8_128", 9, Shape(16, 16, 0)),
            ("FP8_128", 19, Shape(32, 64, 16)),
        ):
            weight = torch.randn(4 * rows, columns, generator=generator).half() / 16
            if kind != "PLAIN":
                stored = weight_of(kind, 4 * rows, columns)
                weight = Blocks(stored.format, stored.data.clone(), torch.float16).to_planes()
            data = weight if kind == "PLAIN" else weight.data
            x = torch.randn(tokens, columns, generator=generator).half()
            bias = torch.randn(4, rows, generator=generator).half()
            given = x, data[:rows], kind, bias[0]
            whole = skinny.product(*given, shape=shape)
            found.append(apart(skinny.product(*given, gates, shape), fused.gated(whole, gates)))
            if tokens != len(numbers):
                continue
            halves, whole = (torch.zeros(12, size).half() for size in (rows // 2, rows))
            for y, opening in ((halves, gates), (whole, None)):
                experts_triton.product(x, weight, bias, pairs, y, None, None, opening, shape)
            found.append(apart(halves[:-2], fused.gated(whole, gates)[:-2]))
    assert not skinny.counters(x.device).any()
    return found
