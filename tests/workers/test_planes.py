"""Weights in planes: the same numbers in another order, and the product that reads them so on a GPU."""

from __future__ import annotations

import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.workers.engines import GPU
from tests.workers.random_blocks import weight_of
from tests.workers.tiny_models import qwen3
from workers.checkpoints.blocks import FORMATS, filled
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split
from workers.kernels import products
from workers.layers.embedding import Embedding, Head, VocabularySlice
from workers.layers.grouped import GroupedLinear
from workers.layers.linear import ColumnParallel, Linear
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights import planes
from workers.weights.blocks import Blocks, Empty
from workers.weights.rows import E2M1

KINDS = (*planes.BLOCKS, *planes.ROWS)
TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")


@pytest.mark.parametrize("kind", KINDS)
def test_planes_have_the_same_bits_and_can_be_undone(kind):
    data = torch.randint(0, 256, (3, FORMATS[kind].row_bytes(768)), dtype=torch.uint8)
    there = planes.to_planes(kind, data)
    assert there.shape == data.shape
    assert not torch.equal(there, data)
    assert torch.equal(planes.from_planes(kind, there), data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_in_planes_means_what_it_meant(kind):
    weight = weight_of(kind, 5, 768)
    expected = weight.float()
    there = Blocks(weight.format, weight.data.clone(), torch.bfloat16).to_planes()
    assert torch.equal(there.float(), expected)
    assert torch.equal(there[torch.tensor([4, 1])].float(), expected[[4, 1]])
    assert there.data.stride(0) % 16 == 0  # where a load of 16 bytes may begin


@pytest.mark.parametrize("columns", [96, 160, 192])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if FORMATS[kind].elements <= 64])
def test_zeros_fill_the_last_step_of_a_row_and_are_none_of_its_columns(kind, columns):
    if columns % FORMATS[kind].elements:
        columns = 64
    weight = weight_of(kind, 5, columns)
    there = Blocks(weight.format, weight.data.clone(), torch.bfloat16).to_planes()
    assert planes.takes(kind, columns)
    assert there.shape == weight.shape
    assert there.data.shape[1] == FORMATS[kind].row_bytes(columns + filled(columns))
    assert there.data.stride(0) % 16 == 0
    assert 5 * there.data.stride(0) == weight.data.nbytes + 5 * FORMATS[kind].filling(columns)
    assert torch.equal(there.float(), weight.float())
    assert torch.equal(there[torch.tensor([4, 1])].float(), weight.float()[[4, 1]])
    undone = planes.from_planes(kind, there.data)
    assert torch.equal(planes.to_planes(kind, undone), there.data)


def test_numbers_stand_as_a_tensor_core_takes_them():
    """Of 32 columns thread t has 4t to 4t + 3, and those from 16 on: neighbours in one register."""
    numbers = torch.arange(128, dtype=torch.uint8)[None] % 16
    halves = planes.to_planes("INT4_128", _int4(numbers))[0, :64].view(torch.int16).view(4, 4, 2)
    for thread in range(4):
        for group in range(4):
            for pair in range(2):
                half = int(halves[thread, group, pair])
                columns = [32 * group + 16 * (n // 2) + 4 * thread + 2 * (n % 2) + pair for n in range(4)]
                assert [half >> 4 * n & 15 for n in range(4)] == [column % 16 for column in columns]


def _int4(numbers: torch.Tensor) -> torch.Tensor:
    return torch.cat([numbers[:, ::2] | numbers[:, 1::2] << 4, torch.zeros(1, 4, dtype=torch.uint8)], dim=1)


def test_a_tied_embedding_reads_what_its_head_has_reordered(monkeypatch):
    monkeypatch.setattr("workers.layers.linear.wants_planes", lambda weight: True)
    empty = Empty(torch.bfloat16, formats={"embed.weight": "Q6_K"})
    vocabulary = VocabularySlice(40, RankGroup())
    embedding = Embedding("embed", vocabulary, 256, empty)
    head = Head("head", vocabulary, 256, embedding, empty)
    weight = weight_of("Q6_K", 40, 256)
    embedding.weight.data.copy_(weight.data)
    head.pack()
    assert head.weight.in_planes
    numbers = torch.tensor([3, 39])
    assert torch.equal(embedding(numbers), weight.float()[numbers].bfloat16())


def test_a_linear_keeps_its_order_where_nothing_reads_planes():
    weight = weight_of("Q4_K", 8, 256)
    linear = Linear(Blocks(weight.format, weight.data, torch.bfloat16))
    linear.pack()
    assert not linear.weight.in_planes


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])  # whose rows begin at 16 bytes, and whose do not
def test_experts_are_put_in_order_together(kind, monkeypatch):
    monkeypatch.setattr("workers.layers.grouped.can_pack", lambda dtype, device: False)
    monkeypatch.setattr("workers.layers.grouped.wants_planes", lambda weight: True)
    empty = Empty(torch.bfloat16, formats={f"{n}.up.weight": kind for n in range(3)})

    def make(number: int, empty: Empty) -> Linear:
        return ColumnParallel([(f"{number}.up", 8, range(8))], 768, False, empty)

    grouped = GroupedLinear(3, make, empty)
    weights = [weight_of(kind, 8, 768) for _ in range(3)]
    for expert, weight in zip(grouped.experts, weights, strict=True):
        expert.parts[0].weight.data.copy_(weight.data)
    grouped.put_in_order()
    [(stack, _)] = grouped.stacks
    assert stack.in_planes
    assert torch.equal(stack.float(), torch.cat([weight.float() for weight in weights]))
    for expert, weight in zip(grouped.experts, weights, strict=True):
        assert torch.equal(expert.parts[0].weight.float(), weight.float())


@pytest.mark.parametrize("counts", [(1,), (1, 1)])
def test_a_load_puts_experts_in_order_and_what_fills_their_rows_is_planned(tiny, monkeypatch, counts):
    monkeypatch.setattr("workers.layers.grouped.can_pack", lambda dtype, device: False)
    monkeypatch.setattr("workers.layers.grouped.wants_planes", lambda weight: True)
    card, split = read_card(tiny("gpt_oss_mxfp4").folder), Split(counts)
    for rank, filling in enumerate(card.filling_per_rank(split, "bfloat16")):
        model = MODELS[card.family](
            card.config, RankGroup(rank, split.ranks), torch.bfloat16, card.formats(split)
        )
        for block in model.blocks:
            block.put_in_order()
        stacks = [
            stack
            for block in model.blocks
            for part in (block.mlp.gate_up, block.mlp.down)
            for stack, _ in part.stacks
        ]
        assert len(stacks) == 2 * len(model.blocks)
        assert all(stack.in_planes and stack.filled for stack in stacks)
        held = sum(stack.data.stride(0) * len(stack.data) for stack in stacks)
        stored = sum(len(stack.data) * stack.format.row_bytes(stack.shape[1]) for stack in stacks)
        assert held - stored == filling > 0


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_is_filled_where_a_head_multiplies_it_and_is_planned_so(tmp_path, monkeypatch, tied):
    monkeypatch.setattr("workers.layers.linear.wants_planes", lambda weight: True)
    qwen3(hidden_size=160, intermediate_size=192, tie_word_embeddings=tied).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    card = read_card(tmp_path)
    model = MODELS[card.family](card.config, RankGroup(), torch.bfloat16, card.formats(ALONE, "q8"))
    for part in [*model.parts()]:
        part.finish()
    linears = [
        part for block in model.blocks for each in block.linears for part in getattr(each, "parts", [each])
    ]
    weights = {id(each.weight): each.weight for each in (*linears, model.head, model.embedding)}.values()
    assert len(weights) == len(linears) + 2 - tied
    more = sum(
        len(weight.data) * (weight.data.stride(0) - weight.format.row_bytes(weight.shape[1]))
        for weight in weights
    )
    assert card.filling_per_rank(ALONE, "bfloat16", "q8") == [more]
    assert more > 0
    assert card.filling_per_rank(ALONE, "float32", "q8") == [0]


# --- the assembly, which no interpreter knows ---------------------------------------------------------------


def run_assembly(text: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs, uint32, of lines of PTX that a kernel has; `inputs` are registers of uint32."""
    outputs = len(set(re.findall(r"\$(\d+)", text))) - len(inputs)
    registers = {f"${outputs + i}": each.astype(np.uint32) for i, each in enumerate(inputs)}
    for line in text.strip("{} ").split(";"):
        if not (words := line.replace(",", " ").split()) or words[0] == ".reg":
            continue
        name, into, *sources = words
        values = [registers[s] if s in registers else np.uint32(int(s, 0)) for s in sources]
        registers[into] = _executed(name, *values)
    return [registers[f"${i}"] for i in range(outputs)]


def _executed(name: str, a, b=None, c=None, table=None) -> np.ndarray:
    if name == "mov.b32":
        return a
    if name == "shl.b32":
        return a << b
    if name == "shr.u32":
        return a >> b
    if name == "prmt.b32":
        both = np.stack(np.broadcast_arrays(a, b, c)[:2], axis=-1).astype("<u4").view(np.uint8)  # [n, 8]
        places = np.stack([np.broadcast_to(c, both.shape[:1]) >> 4 * i & 15 for i in range(4)], axis=1)
        assert (places < 8).all()
        return np.take_along_axis(both, places.astype(int), axis=1).copy().view("<u4")[:, 0]
    if name == "and.b32":
        return a & b
    if name == "lop3.b32":
        return {0xEA: (a & b) | c, 0x6A: (a & b) ^ c}[int(table)]
    parts = [_floats(part, name) for part in (a, b, c) if part is not None]
    if name == "fma.rn.bf16x2":
        return _bits(parts[0] * parts[1] + parts[2], name)
    if name == "mul.f16x2":
        return _bits(parts[0] * parts[1], name)
    assert name == "sub.f16x2"
    return _bits(parts[0] - parts[1], name)


def _floats(register: np.ndarray, name: str) -> np.ndarray:  # [n] -> [n, 2] float64
    kind = torch.bfloat16 if "bf16" in name else torch.float16
    halves = np.atleast_1d(np.asarray(register, np.uint32)).view(np.int16)
    return torch.from_numpy(halves.copy()).view(kind).double().numpy().reshape(-1, 2)


def _bits(values: np.ndarray, name: str) -> np.ndarray:
    kind = torch.bfloat16 if "bf16" in name else torch.float16
    return torch.from_numpy(values).to(kind).view(torch.int16).numpy().reshape(-1).view(np.uint32)


@TRITON
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_assembly_makes_floats_of_all_numbers(dtype):
    import triton.language as tl

    from workers.kernels import planes_triton

    kind = tl.dtype(dtype)
    halves = np.arange(1 << 16, dtype=np.uint32)
    both = halves | (halves * 40_503 & 0xFFFF) << 16  # every half beside another
    name = "bf16" if dtype == "bf16" else "f16"
    offset = planes_triton.offset_of("Q4_K", kind)

    def low(register):
        return _floats(register, name)

    lanes = np.stack([both & 0xFFFF, both >> 16], axis=1).astype(np.int64)
    for number, found in enumerate(run_assembly(planes_triton._nibbles_asm(kind, 0, 0), both)):
        assert (low(found) == (lanes >> 4 * number & 15) + offset).all()
    for bits in (1, 2):
        for group in range(4):
            text = planes_triton._nibbles_asm(kind, bits, group)
            other = both[::-1].copy()
            high = np.stack([other & 0xFFFF, other >> 16], axis=1).astype(np.int64)
            for number, found in enumerate(run_assembly(text, both, other)):
                place = bits * (4 * (group % 2 if bits == 2 else group) + number)
                expected = (lanes >> 4 * number & 15) + ((high >> place & ((1 << bits) - 1)) << 4) + offset
                assert (low(found) == expected).all()
    e2m1 = np.array(E2M1)
    for number, found in enumerate(run_assembly(planes_triton._fp4_asm(kind), both)):
        assert (low(found) == e2m1[lanes >> 4 * number & 15]).all()
    for name_of_table, table in planes_triton.IN_TABLES.items():
        entries = (
            torch.tensor(table).to(torch.bfloat16 if dtype == "bf16" else torch.float16).double().numpy()
        )
        for number, found in enumerate(run_assembly(planes_triton._table_asm(kind, name_of_table), both)):
            assert (low(found) == entries[lanes >> 4 * number & 15]).all()
    whole = torch.arange(256, dtype=torch.uint8)
    e4m3 = whole.view(torch.float8_e4m3fn).double().numpy()
    for number in range(2):
        codes = lanes >> 8 * number & 255
        found = low(run_assembly(planes_triton._bytes_asm(kind, True), both)[number])
        numbers = codes & 127 != 127  # the rest is no number
        assert (found[numbers] == e4m3[codes][numbers]).all()
        found = low(run_assembly(planes_triton._bytes_asm(kind, False), both)[number])
        assert (found == (codes ^ 128) - 128).all()


# --- on cards -----------------------------------------------------------------------------------------------

COMPILED = [
    ("Q4_K", 1, 90),
    ("NVFP4", 1, 80),
    ("Q4_K", 16, 80),
    ("Q6_K", 1, 89),
    ("Q5_K", 1, 86),
    ("Q4_K", 16, 90),
    ("MXFP4", 16, 120),
    ("INT8_128", 16, 120),
    ("INT4_128", 16, 120),
    ("NF4_64", 16, 86),
]


@TRITON
@pytest.mark.parametrize(("kind", "tokens", "capability"), COMPILED)
def test_a_program_spills_nothing_and_its_weights_go_from_memory_to_the_tensor_core(kind, tokens, capability):
    from benchmarks.kernels import compile_skinny

    found = compile_skinny(capability, kind, tokens)
    assert found.spilt == 0
    assert found.load == 16
    assert "HMMA" in found.loop
    for through in ("STS", "LDS", "SHFL", "BAR"):  # shared memory, another thread, a wait for others
        assert through not in found.loop


@TRITON
@pytest.mark.parametrize(
    ("kind", "tokens", "capability"),
    [("Q4_K", 1, 86), ("Q6_K", 16, 120), ("PLAIN", 1, 90), ("PLAIN", 16, 89), ("Q5_K", 8, 120)],
)
def test_nor_does_one_whose_gates_open_where_it_ends(kind, tokens, capability):
    from benchmarks.kernels import compile_few_experts, compile_skinny

    compiled = compile_few_experts if kind in ("PLAIN", "Q5_K") else compile_skinny
    found = compiled(capability, kind, tokens, activation=0)
    assert found.spilt == 0
    assert found.load == 16


@TRITON
@pytest.mark.parametrize(
    ("kind", "tokens", "capability"),
    [
        ("Q4_K", 8, 120),
        ("Q5_0", 8, 90),
        ("Q5_1", 16, 120),
        ("Q5_K", 16, 90),
        ("MXFP4", 16, 120),
        ("INT4_128", 16, 120),
        ("NF4_64", 16, 120),
        ("FP4_64", 16, 120),
    ],
)
def test_nor_does_one_of_experts_with_some_tokens(kind, tokens, capability):
    from benchmarks.kernels import compile_few_experts

    assert compile_few_experts(capability, kind, tokens).spilt == 0


@TRITON
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize(("kind", "tokens"), [("MXFP4", 1), ("MXFP4", 16), ("PLAIN", 8)])
def test_nor_does_one_of_experts_whose_last_step_is_filled(kind, tokens, capability):
    from benchmarks.kernels import FILLED, compile_few_experts

    for activation in (-1, 3):  # gpt-oss's gates
        found = compile_few_experts(capability, kind, tokens, activation=activation, filled=FILLED)
        assert (found.spilt, found.load) == (0, 16)


@TRITON
def test_a_program_of_some_rows_spills_nothing_and_leaves_room_for_others():
    from benchmarks.kernels import SHARED_BYTES, compile_skinny

    found = compile_skinny(86, "NVFP4", 64)
    assert found.spilt == 0
    assert found.load == 16
    assert found.shared <= SHARED_BYTES[86] // 4
    assert "HMMA" in found.loop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_a_device_computes_what_the_reference_does(kind, device):
    from workers.kernels import skinny

    weight = weight_of(kind, 300, 1024)
    generator = torch.Generator().manual_seed(0)
    there = Blocks(weight.format, weight.data.to(device), torch.bfloat16).to_planes()
    for tokens in (1, 7, 13, 40, 200):
        x = torch.randn(tokens, 1024, generator=generator).bfloat16()
        expected = x.float() @ weight.float().t()
        ways = [products.product(x.to(device), there)]
        if products.SKINNY < tokens <= products.SOME:  # by the cache of the device one of both
            ways.append(skinny.product(x.to(device), there.data, kind, None))
        for y in ways:
            assert (y.float().cpu() - expected).norm() / expected.norm() < 0.004
        y = ways[0]
        assert torch.equal(products.product(x.to(device), there), y)
