"""Weights in planes (`workers/weights/planes.py`), read by a warp as its tensor core takes them.

A tensor of numbers is `[rows, 4, 2]`: of each row, four threads have two neighbours in 16 bits each, which
are one register. Masked into the mantissa of 128 (bfloat16) or 1024 (float16) a number is a float, two of
them in one instruction; what that adds is taken off again with the sum of the inputs, where the scale is put
on. So a product costs two instructions a weight, and a scale is never rounded.

Triton's interpreter knows no assembly: there the same is said in its own words.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from workers.kernels.floats_triton import e2m1, e4m3
from workers.weights.planes import plane_bytes
from workers.weights.rows import FP4, NF4

STEP = tl.constexpr(128)  # columns that stand together
KINDS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "NVFP4"),
    *("INT4_32", "INT4_64", "INT4_128", "INT8_128", "INT8_ROW", "FP8_128", "FP8_ROW", "NF4_64", "FP4_64"),
)
IN_BYTES = ("Q8_0", "INT8_128", "INT8_ROW", "FP8_128", "FP8_ROW")
IN_FLOATS = ("FP8_128", "FP8_ROW", "MXFP4", "NVFP4")
IN_TABLES = {"NF4_64": NF4, "FP4_64": FP4}  # whose numbers are those of entries
IN_HALVES = {  # the bits of entries; whether in bfloat16
    (kind, dtype == torch.bfloat16): torch.tensor(table).to(dtype).view(torch.int16).tolist()
    for kind, table in IN_TABLES.items()
    for dtype in (torch.bfloat16, torch.float16)
}
PLANES = {kind: plane_bytes(kind) for kind in KINDS} | {"PLAIN": (256,)}  # of a step
BY_SIXTEEN = ("Q6_K", "NVFP4")  # columns that share a scale; else it is 32 or more
FIRST_AXIS_FIRST = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7))
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.constexpr_function
def halves_of(kind):
    """How many scales 32 columns have at most."""
    return 2 if kind in BY_SIXTEEN else 1


@triton.constexpr_function
def is_coarse(kind):
    """Whether all columns of a step share a scale."""
    return kind.endswith(("_128", "_ROW"))


@triton.constexpr_function
def offset_of(kind, dtype):
    """What is added to all numbers as they are multiplied: they are read into a mantissa."""
    if kind in IN_BYTES or kind in IN_FLOATS or kind in IN_TABLES:
        return 0
    return 128 if dtype == tl.bfloat16 else 1024


@triton.constexpr_function
def middle_of(kind, dtype):
    """What is taken off a number, as it is multiplied, before its scale is put on."""
    return offset_of(kind, dtype) + {"Q4_0": 8, "Q5_0": 16, "Q6_K": 32}.get(kind, 0)


@triton.constexpr_function
def is_filled(group, filled):
    """Whether 32 columns of a row's last step, the `group`-th, are some of those that fill it."""
    return 32 * (4 - group) <= filled


@triton.constexpr_function
def has_least(kind):
    """Whether something is taken off afterwards, too."""
    return kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "INT4_32", "INT4_64", "INT4_128")


@triton.constexpr_function
def planes_of(kind):
    """How many a row has."""
    return len(PLANES[kind])


@triton.constexpr_function
def step_bytes(kind, plane):
    """Of a row, in one of its planes."""
    return PLANES[kind][plane]


@triton.constexpr_function
def bytes_before(kind, plane):
    """The same in all planes that stand before that one."""
    return sum(PLANES[kind][:plane])


@triton.constexpr_function
def _high_bits(kind):
    return 2 if kind == "Q6_K" else 1 if kind in ("Q5_0", "Q5_1", "Q5_K") else 0


@triton.constexpr_function
def _in_bytes(kind):
    return kind in IN_BYTES


@triton.constexpr_function
def _in_floats(kind):
    return kind in IN_FLOATS


@triton.constexpr_function
def _in_table(kind):
    return kind in IN_TABLES


@triton.constexpr_function
def _entry(kind, number):
    return IN_TABLES[kind][number]


# --- numbers, two in a register -------------------------------------------------------------------------


@triton.constexpr_function
def _moved(into, source, left):
    """A line that shifts, to the right where `left` is negative."""
    if not left:
        return f"mov.b32 {into}, {source};"
    return f"shl.b32 {into}, {source}, {left};" if left > 0 else f"shr.u32 {into}, {source}, {-left};"


@triton.constexpr_function
def _twice(half):
    return f"0x{half:04x}{half:04x}"


@triton.constexpr_function
def _times(dtype, count):
    return (dtype,) * count


@triton.constexpr_function
def _lines(*lines):
    return "{ .reg .b32 a, b; " + " ".join(lines) + " }"


@triton.constexpr_function
def _nibbles_asm(dtype, bits, group):
    """Four numbers of a half and, with `bits`, of what they have of higher ones."""
    magic = _twice(0x4300 if dtype == tl.bfloat16 else 0x6400)
    lines = []
    for number in range(4):
        lines += [_moved("a", "$4", -4 * number), f"lop3.b32 ${number}, a, 0x000f000f, {magic}, 0xea;"]
        if bits:
            place = bits * (4 * (group % 2 if bits == 2 else group) + number)
            mask = _twice(((1 << bits) - 1) << 4)
            lines += [_moved("b", "$5", 4 - place), f"lop3.b32 ${number}, b, {mask}, ${number}, 0xea;"]
    return _lines(*lines)


@triton.constexpr_function
def _bytes_asm(dtype, floats):
    """Two numbers of a half. Of integers 7 bits are read into a mantissa, and the eighth is taken off."""
    lines = []
    for number in range(2):
        down = 8 * number
        if floats:  # e4m3: exponent and mantissa where the type has them, its sign, and then the bias
            left, mask, scale = (4, 0x07F0, 0x7B80) if dtype == tl.bfloat16 else (7, 0x3F80, 0x5C00)
            lines += [
                _moved("a", "$2", left - down),
                f"and.b32 a, a, {_twice(mask)};",
                _moved("b", "$2", 8 - down),
                "lop3.b32 a, b, 0x80008000, a, 0xea;",
                _scaled(number, dtype, scale),
            ]
        elif dtype == tl.bfloat16:
            lines += [
                _moved("b", "$2", -down),
                "lop3.b32 a, b, 0x007f007f, 0x43004300, 0xea;",
                "lop3.b32 b, b, 0x00800080, 0xc300c300, 0xea;",
                f"fma.rn.bf16x2 ${number}, a, c, b;",
            ]
        else:
            lines += [
                _moved("b", "$2", -down),
                "lop3.b32 a, b, 0x00ff00ff, 0x64806480, 0x6a;",
                "mov.b32 b, 0x64806480;",
                f"sub.f16x2 ${number}, a, b;",
            ]
    return "{ .reg .b32 a, b, c; mov.b32 c, 0x3f803f80; " + " ".join(lines) + " }"


@triton.constexpr_function
def _scaled(number, dtype, scale):
    """Two floats times a power of two."""
    if dtype == tl.bfloat16:  # which older cards multiply only to add
        zero = "mov.b32 b, 0x80008000;"
        return f"mov.b32 c, {_twice(scale)}; {zero} fma.rn.bf16x2 ${number}, a, c, b;"
    return f"mov.b32 c, {_twice(scale)}; mul.f16x2 ${number}, a, c;"


@triton.constexpr_function
def _fp4_asm(dtype):
    """Four floats of a half: e2m1, whose exponent and mantissa go where the type has them."""
    left, mask, scale = (6, 0x01C0, 0x7E80) if dtype == tl.bfloat16 else (9, 0x0E00, 0x7400)
    lines = []
    for number in range(4):
        lines += [
            _moved("a", "$4", left - 4 * number),
            f"and.b32 a, a, {_twice(mask)};",
            _moved("b", "$4", 12 - 4 * number),
            "lop3.b32 a, b, 0x80008000, a, 0xea;",
            _scaled(number, dtype, scale),
        ]
    return "{ .reg .b32 a, b, c; " + " ".join(lines) + " }"


@triton.constexpr_function
def _table_asm(dtype, kind):
    """Four numbers of a half out of a table of 16: of each its upper byte and its lower one.

    `prmt` takes bytes out of eight by three bits of a number; of the two that it so finds in both halves of
    the table, the fourth bit says which.
    """
    words = IN_HALVES[kind, dtype == tl.bfloat16]
    lines = [
        "and.b32 n, $4, 0x77777777;",
        _moved("s", "$4", -1),
        "lop3.b32 s, s, 0x44444444, 0x32103210, 0xea;",
    ]
    for half in "xy":
        for byte, down in (("l", 0), ("u", 8)):
            parts = [
                "0x" + "".join(f"{word >> down & 255:02x}" for word in reversed(words[first : first + 4]))
                for first in range(0, 16, 4)
            ]
            lines += [
                f"prmt.b32 a, {parts[0]}, {parts[1]}, n;",
                f"prmt.b32 b, {parts[2]}, {parts[3]}, n;",
                f"prmt.b32 {half}{byte}, a, b, s;",
            ]
        lines += [_moved("n", "n", -16), _moved("s", "s", -16)]
    for pair, order in ((0, "0x5140"), (2, "0x7362")):
        lines += [
            f"prmt.b32 a, xl, xu, {order};",
            f"prmt.b32 b, yl, yu, {order};",
            f"prmt.b32 ${pair}, a, b, 0x5410;",
            f"prmt.b32 ${pair + 1}, a, b, 0x7632;",
        ]
    return "{ .reg .b32 a, b, n, s, xl, xu, yl, yu; " + " ".join(lines) + " }"


@triton.jit
def _plain_nibble(h, e, P: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr):
    BITS: tl.constexpr = _high_bits(KIND)
    q = h.to(tl.int32) >> 4 * P & 15
    if _in_table(KIND):
        value = tl.zeros(q.shape, tl.float32)
        for number in tl.static_range(16):
            value = tl.where(q == number, _entry(KIND, number), value)
        return value.to(DTYPE)
    if _in_floats(KIND):
        return e2m1(q).to(DTYPE)
    if BITS > 0:
        place: tl.constexpr = BITS * (4 * (GROUP % 2 if BITS == 2 else GROUP) + P)
        q |= (e.to(tl.int32) >> place & ((1 << BITS) - 1)) << 4
    return (q + offset_of(KIND, DTYPE)).to(DTYPE)


@triton.jit
def _plain_byte(h, P: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    q = h.to(tl.int32) >> 8 * P & 255
    if _in_floats(KIND):
        return e4m3(q).to(DTYPE)
    return ((q ^ 128) - 128).to(DTYPE)


@triton.jit
def _nibbles(h, e, GROUP: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    if INTERPRETED:
        return (
            _plain_nibble(h, e, 0, KIND, GROUP, DTYPE),
            _plain_nibble(h, e, 1, KIND, GROUP, DTYPE),
            _plain_nibble(h, e, 2, KIND, GROUP, DTYPE),
            _plain_nibble(h, e, 3, KIND, GROUP, DTYPE),
        )
    elif _in_table(KIND):
        return tl.inline_asm_elementwise(
            _table_asm(DTYPE, KIND), "=r,=r,=r,=r,r", [h], _times(DTYPE, 4), is_pure=True, pack=2
        )
    elif _in_floats(KIND):
        return tl.inline_asm_elementwise(
            _fp4_asm(DTYPE), "=r,=r,=r,=r,r", [h], _times(DTYPE, 4), is_pure=True, pack=2
        )
    elif _high_bits(KIND) == 0:
        return tl.inline_asm_elementwise(
            *(_nibbles_asm(DTYPE, 0, 0), "=r,=r,=r,=r,r", [h], _times(DTYPE, 4)),
            is_pure=True,
            pack=2,
        )
    else:
        return tl.inline_asm_elementwise(
            *(_nibbles_asm(DTYPE, _high_bits(KIND), GROUP), "=r,=r,=r,=r,r,r", [h, e]),
            _times(DTYPE, 4),
            is_pure=True,
            pack=2,
        )


@triton.jit
def _bytes(h, KIND: tl.constexpr, DTYPE: tl.constexpr):
    if INTERPRETED:
        return _plain_byte(h, 0, KIND, DTYPE), _plain_byte(h, 1, KIND, DTYPE)
    else:
        return tl.inline_asm_elementwise(
            _bytes_asm(DTYPE, _in_floats(KIND)), "=r,=r,r", [h], _times(DTYPE, 2), is_pure=True, pack=2
        )


# --- what a warp loads ----------------------------------------------------------------------------------


@triton.jit
def _split4(v):  # [n, 4, 4] -> four [n, 4]
    even, odd = tl.split(tl.reshape(v, (v.shape[0], 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _split_pairs4(v):  # [n, 4, 8]: four pairs -> four [n, 4, 2]
    apart = tl.permute(tl.reshape(v, (v.shape[0], 4, 2, 2, 2)), (0, 1, 4, 2, 3))
    even, odd = tl.split(apart)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def four_threads(at, BETWEEN: tl.constexpr, COUNT: tl.constexpr, there=None):
    """`[n, 4, COUNT]` of what stands from `at` `[n]` on, for four threads, BETWEEN from one to the next.

    A thread takes all of the last axis. Which axis the next threads go along is the compiler's choice between
    two, and not the same in all its versions: they come first in its order.

    Args:
        there: `[n]`, False where there are zeros.
    """
    within = tl.arange(0, COUNT)[None, None, :]
    if FIRST_AXIS_FIRST:
        each = at[None, :, None] + tl.arange(0, 4)[:, None, None] * BETWEEN + within
        if there is None:
            return tl.permute(tl.load(each), (1, 0, 2))
        else:
            return tl.permute(tl.load(each, mask=there[None, :, None], other=0.0), (1, 0, 2))
    else:
        each = at[:, None, None] + tl.arange(0, 4)[None, :, None] * BETWEEN + within
        if there is None:
            return tl.load(each)
        else:
            return tl.load(each, mask=there[:, None, None], other=0.0)


@triton.jit
def _halves(rows, COUNT: tl.constexpr):
    """`[n, 4, COUNT]` of 16 bits: what stands in each row from `rows` `[n]` on."""
    return four_threads(rows.to(tl.pointer_type(tl.int16)), COUNT, COUNT)


@triton.jit
def load_numbers(rows, k, columns, KIND: tl.constexpr):
    """128 columns of each row from `k` on: what `numbers_of` takes."""
    if _in_bytes(KIND):
        a, b, c, d = _split_pairs4(_halves(rows + k, 8))
        e, f, g, h = _split_pairs4(_halves(rows + k + 64, 8))
        return a, b, c, d, e, f, g, h
    else:
        a, b, c, d = _split_pairs4(_halves(rows + k // 2, 8))
        if _high_bits(KIND) == 2:
            high = tl.reshape(_halves(rows + columns // 128 * 64 + k // 4, 4), (rows.shape[0], 4, 2, 2))
            e, f = tl.split(tl.permute(high, (0, 1, 3, 2)))
        elif _high_bits(KIND) == 1:
            e = _halves(rows + columns // 128 * 64 + k // 8, 2)
            f = e
        else:
            e = a
            f = a
        return a, b, c, d, e, f


@triton.jit
def numbers_of(loaded, GROUP: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """Those of 32 columns: four `[n, 4, 2]`, which `tile` puts in order; `offset_of` is still in them."""
    if _in_bytes(KIND):
        a, b = _bytes(loaded[2 * GROUP], KIND, DTYPE)
        c, d = _bytes(loaded[2 * GROUP + 1], KIND, DTYPE)
        return a, b, c, d
    else:
        high: tl.constexpr = 4 + (GROUP // 2 if _high_bits(KIND) == 2 else 0)
        return _nibbles(loaded[GROUP], loaded[high], GROUP, KIND, DTYPE)


@triton.jit
def tile(a, b, c, d):  # [n, 4, 2] each -> [n, 32]
    """Numbers of 32 columns in the columns' order, which moves nothing."""
    all = tl.join(tl.join(a, b), tl.join(c, d))  # row, thread, in a pair, pair, half
    return tl.reshape(tl.permute(all, (0, 4, 1, 3, 2)), (a.shape[0], 32))


@triton.jit
def in_turns(a, b, c, d):  # [n, 4, 2] each -> [n, 32]
    """The same in the order in which a tensor core takes one half after the other, of which four threads have
    registers that follow each other: so has what it is multiplied with."""
    all = tl.join(tl.join(a, b), tl.join(c, d))  # row, thread, in a pair, pair, half
    return tl.reshape(tl.permute(all, (0, 3, 1, 4, 2)), (a.shape[0], 32))


# --- scales ---------------------------------------------------------------------------------------------


@triton.jit
def _four_times(at, COUNT: tl.constexpr):
    """`[n, 4, COUNT]` of what stands there, the same for each of four threads."""
    return four_threads(at, 0, COUNT)


@triton.jit
def _once(at):  # [n] pointers -> [n, 4]
    n: tl.constexpr = at.shape[0]
    if FIRST_AXIS_FIRST:
        return tl.trans(tl.load(tl.broadcast_to(at[None, :], (4, n))))
    else:
        return tl.load(tl.broadcast_to(at[:, None], (n, 4)))


@triton.jit
def _half_of(word, UPPER: tl.constexpr):
    return (word >> 16 * UPPER).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _byte_of(word, N: tl.constexpr):
    return word.to(tl.uint32, bitcast=True) >> 8 * N & 255


@triton.jit
def _with_zero(word):
    """A scale, and as much as its zero point takes off; that is the last four bits of it."""
    scale = (word & -16).to(tl.float32, bitcast=True)
    return scale, scale * (word & 15).to(tl.float32)


@triton.jit
def _scales_at(rows, k, columns, KIND: tl.constexpr):
    """Where scales of columns from `k` on stand, of what has one for 32 of them and none above it."""
    if KIND == "Q4_1" or KIND == "Q5_1":
        at = rows + columns // 128 * 64 + k // 8
    elif KIND == "Q8_0":
        at = rows + columns + k // 16
    else:
        at = rows + columns // 128 * 64 + k // 16
    if KIND == "Q5_0" or KIND == "Q5_1":
        at += columns // 128 * 16
    return at


@triton.jit
def load_scales(rows, k, columns, KIND: tl.constexpr):
    """Of 128 columns of each row, from `k` on: what `scale_of` takes."""
    words = tl.pointer_type(tl.int32)
    floats = tl.pointer_type(tl.float32)
    if KIND == "Q4_K" or KIND == "Q5_K":
        at = rows + columns // 128 * 64 + k // 256 * 16
        if KIND == "Q5_K":
            at += columns // 128 * 16
        both, first, second, lower = _split4(_four_times(at.to(words), 4))
        is_second = k // 128 % 2
        scale = tl.where(is_second == 0, first, second)
        least = lower >> 4 * is_second & 0x0F0F0F0F | scale >> 2 & 0x30303030
        return _half_of(both, 0), _half_of(both, 1), scale & 0x3F3F3F3F, least
    elif KIND == "Q6_K":
        at = rows + columns // 128 * 96
        a, b = tl.split(_four_times((at + k // 16).to(words), 2))
        whole = _once((at + columns // 128 * 8 + k // 256 * 2).to(tl.pointer_type(tl.float16)))
        return a, b, whole.to(tl.float32)
    elif KIND == "Q4_1" or KIND == "Q5_1":
        return _split4(_four_times(_scales_at(rows, k, columns, KIND).to(words), 4))
    elif KIND == "Q4_0" or KIND == "Q5_0" or KIND == "Q8_0":
        at = _scales_at(rows, k, columns, KIND).to(tl.pointer_type(tl.float16))
        return _split4(_four_times(at, 4).to(tl.float32))
    elif KIND == "MXFP4":
        return _once((rows + columns // 128 * 64 + k // 32).to(words)), 0
    elif KIND == "NVFP4":
        at = rows + columns // 128 * 64
        a, b = tl.split(_four_times((at + k // 16).to(words), 2))
        return a, b, _once((at + columns // 16).to(floats))
    elif KIND == "NF4_64" or KIND == "FP4_64":
        return tl.split(_four_times((rows + columns // 128 * 64 + k // 16).to(floats), 2))
    elif KIND == "INT4_32":
        return _split4(_four_times((rows + columns // 128 * 64 + k // 8).to(words), 4))
    elif KIND == "INT4_64":
        return tl.split(_four_times((rows + columns // 128 * 64 + k // 16).to(words), 2))
    elif KIND == "INT4_128":
        return _once((rows + columns // 128 * 64 + k // 32).to(words)), 0
    elif KIND == "INT8_128" or KIND == "FP8_128":
        return _once((rows + columns + k // 32).to(floats)), 0
    else:
        return _once((rows + columns).to(floats)), 0


@triton.jit
def scale_of(loaded, GROUP: tl.constexpr, KIND: tl.constexpr):
    """Of 32 columns: what their numbers are multiplied by, and what is taken off where `has_least`; `[n, 4]`.

    Where 16 columns have a scale of their own: `[n, 4, 2]`, the second for the columns from 16 on.
    """
    if KIND == "Q4_K" or KIND == "Q5_K":
        d, m, scale, least = loaded
        return d * _byte_of(scale, GROUP).to(tl.float32), m * _byte_of(least, GROUP).to(tl.float32)
    elif KIND == "Q6_K":
        word = loaded[GROUP // 2]
        first: tl.constexpr = 2 * (GROUP % 2)
        a = _byte_of(word, first).to(tl.int8, bitcast=False).to(tl.float32)
        b = _byte_of(word, first + 1).to(tl.int8, bitcast=False).to(tl.float32)
        return tl.join(a * loaded[2], b * loaded[2]), 0.0
    elif KIND == "Q4_1" or KIND == "Q5_1":
        return _half_of(loaded[GROUP], 0), -_half_of(loaded[GROUP], 1)
    elif KIND == "Q4_0" or KIND == "Q5_0" or KIND == "Q8_0":
        return loaded[GROUP], 0.0
    elif KIND == "MXFP4":
        e = _byte_of(loaded[0], GROUP)
        scale = tl.where(e == 0, 1 << 22, e << 23).to(tl.float32, bitcast=True)
        return scale, 0.0
    elif KIND == "NVFP4":
        word = loaded[GROUP // 2]
        a = e4m3(_byte_of(word, 2 * (GROUP % 2)))
        b = e4m3(_byte_of(word, 2 * (GROUP % 2) + 1))
        return tl.join(a * loaded[2], b * loaded[2]), 0.0
    elif KIND == "NF4_64" or KIND == "FP4_64":
        return loaded[GROUP // 2], 0.0
    elif KIND == "INT4_32":
        return _with_zero(loaded[GROUP])
    elif KIND == "INT4_64":
        return _with_zero(loaded[GROUP // 2])
    elif KIND == "INT4_128":
        return _with_zero(loaded[0])
    else:
        return loaded[0], 0.0


@triton.jit
def _by_thread(at, TOGETHER: tl.constexpr):
    """`[n, 4]` of what stands from `at` `[n]` on: one for each of four threads, or for TOGETHER of them."""
    # so divided, as the compiler would have a thread load what it sees to follow each other
    if FIRST_AXIS_FIRST:
        return tl.trans(tl.load(at[None, :] + tl.arange(0, 4)[:, None] * 2 // (2 * TOGETHER)))
    else:
        return tl.load(at[:, None] + tl.arange(0, 4)[None, :] * 2 // (2 * TOGETHER))


@triton.jit
def own_scales(rows, k, columns, KIND: tl.constexpr):
    """What `scale_of` has of `load_scales`, of 128 columns: for each of four threads that of its group of 32.

    `[n, 4]`; where 16 columns have a scale of their own `[n, 4, 2]`.
    """
    words = tl.pointer_type(tl.int32)
    floats = tl.pointer_type(tl.float32)
    halves = tl.pointer_type(tl.int16)
    group = tl.arange(0, 4)[None, :]
    if KIND == "Q4_K" or KIND == "Q5_K":
        d, m, scale, least = load_scales(rows, k, columns, KIND)
        return d * _byte_of(scale, group).to(tl.float32), m * _byte_of(least, group).to(tl.float32)
    elif KIND == "Q6_K":
        at = rows + columns // 128 * 96
        both = _by_thread((at + k // 16).to(halves), 1).to(tl.int32)
        whole = _once((at + columns // 128 * 8 + k // 256 * 2).to(tl.pointer_type(tl.float16))).to(tl.float32)
        return tl.join(whole * (both << 24 >> 24).to(tl.float32), whole * (both >> 8).to(tl.float32)), 0.0
    elif KIND == "Q4_1" or KIND == "Q5_1":
        both = _by_thread(_scales_at(rows, k, columns, KIND).to(words), 1)
        return _half_of(both, 0), -_half_of(both, 1)
    elif KIND == "Q4_0" or KIND == "Q5_0" or KIND == "Q8_0":
        at = _scales_at(rows, k, columns, KIND).to(tl.pointer_type(tl.float16))
        return _by_thread(at, 1).to(tl.float32), 0.0
    elif KIND == "MXFP4":
        e = _by_thread(rows + columns // 128 * 64 + k // 32, 1).to(tl.int32)
        return tl.where(e == 0, 1 << 22, e << 23).to(tl.float32, bitcast=True), 0.0
    elif KIND == "NVFP4":
        at = rows + columns // 128 * 64
        both = _by_thread((at + k // 16).to(halves), 1).to(tl.int32)
        whole = _once((at + columns // 16).to(floats))
        return tl.join(e4m3(both & 255) * whole, e4m3(both >> 8 & 255) * whole), 0.0
    elif KIND == "NF4_64" or KIND == "FP4_64":
        return _by_thread((rows + columns // 128 * 64 + k // 16).to(floats), 2), 0.0
    elif KIND == "INT4_32":
        return _with_zero(_by_thread((rows + columns // 128 * 64 + k // 8).to(words), 1))
    else:
        return _with_zero(_by_thread((rows + columns // 128 * 64 + k // 16).to(words), 2))
