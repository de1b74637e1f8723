"""Weights in blocks: read as ggml reads them, made on the way in, planned to the byte, shared by ranks."""

from __future__ import annotations

from pathlib import Path

import gguf
import msgspec
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from ipc.errors import CortexError
from ipc.worker_messages import Submit
from tests.workers import tiny_models
from tests.workers.engines import Answer, Session, make_runner, serve, some_requests
from tests.workers.oracle import fill
from tests.workers.tiny_models import WIDE
from workers.checkpoints.blocks import FORMATS, QUANTIZATIONS
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split
from workers.layers.linear import ColumnParallel
from workers.models.decoder import Decoder
from workers.parallel import RankGroup
from workers.weights.blocks import SHARED_BYTES, Blocks, Empty
from workers.weights.dequantise import BY_BLOCK, dequantise
from workers.weights.loader import TYPES, WeightFiles
from workers.weights.quantise import quantise


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model whose columns are whole blocks on one rank and on two, but for one projection on two."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("wide")
    model = tiny_models.llama(**WIDE, tie_word_embeddings=False)
    fill(model, std=0.1)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def loaded(card: ModelCard, quantization: str, rank: int = 0, size: int = 1) -> Decoder:
    formats = card.formats(Split.evenly(size), quantization)
    model = Decoder(card.config, RankGroup(rank, size), torch.float32, formats)
    WeightFiles(card).load(model.parts(), lambda fraction: None)
    return model


# --- what blocks mean -------------------------------------------------------------------------------------


def test_small_weights_share_memory_and_none_overlaps_another():
    empty = Empty(torch.float32, formats={"weight": "Q8_0"})
    weights = [empty.weight("weight", 33, 64).data for _ in range(3)]
    large = empty.weight("weight", SHARED_BYTES // 34, 32).data
    weights += [empty.weight("weight", SHARED_BYTES // 68, 64).data, large]
    for number, data in enumerate(weights):
        data.fill_(number)
    assert all(bool((data == number).all()) for number, data in enumerate(weights))
    assert all(data.data_ptr() % 64 == 0 for data in weights[:-1])
    owners = [data.untyped_storage().data_ptr() for data in weights]
    assert [owners.index(owner) for owner in owners] == [0, 0, 0, 3, 4]


LOW = {
    "Q1_0": (1, 2),
    "Q2_0": (2, 1),
}  # bits of a number, and what each is worth; the package cannot read them


@pytest.mark.parametrize("name", LOW)
def test_a_block_of_few_bits_has_its_lowest_ones_first(name):
    form, (bits, worth) = FORMATS[name], LOW[name]
    rows = numpy.random.default_rng(0).integers(0, 256, (64, 3 * form.nbytes), dtype=numpy.uint8)
    rows[:, 1 :: form.nbytes] %= 0x70  # scales are numbers
    expected = []
    for block in rows.reshape(-1, form.nbytes):
        packed, scale = int.from_bytes(block[2:], "little"), float(block[:2].view(numpy.float16)[0])
        numbers = (packed >> place * bits & (1 << bits) - 1 for place in range(form.elements))
        expected += [scale * (number * worth - 1) for number in numbers]
    assert dequantise(name, torch.from_numpy(rows)).flatten().tolist() == expected


@pytest.mark.parametrize("name", [name for name in BY_BLOCK if name not in LOW])
def test_a_block_is_read_as_ggml_reads_it(name):
    kind, form = gguf.GGMLQuantizationType[name], FORMATS[name]
    assert gguf.GGML_QUANT_SIZES[kind] == (form.elements, form.nbytes)
    rows = numpy.random.default_rng(0).integers(0, 256, (64, 3 * form.nbytes), dtype=numpy.uint8)
    with numpy.errstate(all="ignore"):  # of random bytes, some scales are not finite
        expected = torch.from_numpy(gguf.quants.dequantize(rows, kind))
    assert torch.equal(dequantise(name, torch.from_numpy(rows)).nan_to_num(7.0), expected.nan_to_num(7.0))


# --- layers -----------------------------------------------------------------------------------------------


def test_projections_in_unlike_formats_are_fused_side_by_side():
    generator = torch.Generator().manual_seed(0)
    shares = {"q": 64, "k": 32, "v": 32, "w": 16}
    formats = {"q.weight": "Q4_K", "k.weight": "Q4_K", "w.weight": "Q6_K"}
    projections = [(name, rows, range(rows)) for name, rows in shares.items()]
    layer = ColumnParallel(projections, 256, True, Empty(torch.float32, "cpu", formats))
    assert [type(part.weight) for part in layer.parts] == [Blocks, torch.Tensor, Blocks]
    weights, biases = [], []
    for piece in layer.pieces():
        wide = torch.randn(piece.shape, generator=generator)
        made = wide if piece.format is None else quantise(piece.format.name, wide)
        piece.into.copy_(made)
        kept = wide if piece.format is None else dequantise(piece.format.name, made)
        (weights if kept.dim() == 2 else biases).append(kept)
    x = torch.randn(5, 256, generator=generator)
    expected = x @ torch.cat(weights).t() + torch.cat(biases)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


# --- a whole model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_planned_bytes_are_the_bytes_that_are_held(folder, quantization):
    card = read_card(folder)
    for size in (1, 2):
        model = Decoder(
            card.config, RankGroup(0, size), torch.bfloat16, card.formats(Split.evenly(size), quantization)
        )
        padding = size * -(-131 // size) - 131
        row = FORMATS[card.formats(Split.evenly(size), quantization)["lm_head.weight"]].row_bytes(256)
        planned = card.bytes_per_rank(Split.evenly(size), "bfloat16", quantization)[0]
        assert 0 <= planned - model.nbytes <= 2 * padding * row
        assert planned < 0.6 * card.bytes_per_rank(Split.evenly(size), "bfloat16")[0]


def test_norms_stay_wide_and_all_that_is_multiplied_does_not(folder):
    card = read_card(folder)
    formats = card.formats(ALONE, "q4")
    assert {name for name in card.tensors if name not in formats} == {
        name for name in card.tensors if "norm" in name
    }
    assert formats["model.layers.0.mlp.down_proj.weight"] == "Q4_K"
    assert formats["model.layers.1.mlp.down_proj.weight"] == "Q6_K"  # of the last eighth
    assert formats["lm_head.weight"] == formats["model.embed_tokens.weight"] == "Q6_K"
    assert (
        card.formats(Split.evenly(2), "q4")["model.layers.0.self_attn.o_proj.weight"] == "Q8_0"
    )  # 128 columns


@pytest.mark.parametrize("quantization", ["q8", "fp8"])
def test_ranks_hold_the_rows_and_columns_of_what_one_rank_holds(folder, quantization):
    card = read_card(folder)
    whole = {
        piece.name: piece
        for part in loaded(card, quantization).parts()
        for piece in part.pieces
        if piece.format is not None
    }
    for rank in range(2):
        for part in loaded(card, quantization, rank, 2).parts():
            for piece in filter(lambda piece: piece.format is not None, part.pieces):
                mine, all_of_it = Blocks(piece.format, piece.into).float(), whole[piece.name]
                wide = Blocks(all_of_it.format, all_of_it.into).float()
                rows, columns = mine.shape
                expected = wide[piece.row : piece.row + rows, piece.column : piece.column + columns]
                assert torch.equal(mine, expected), piece.name


@pytest.mark.parametrize("quantization", ["q4", "int8"])
def test_a_quantised_model_answers_as_its_dequantised_weights_do(folder, tmp_path, quantization):
    card = read_card(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, form in card.formats(ALONE, quantization).items():
        tensors[name] = dequantise(form, quantise(form, tensors[name].float()))
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    requests = some_requests(4, 131, seed=0, longest=12)
    answers = []
    for path, wanted in ((folder, quantization), (tmp_path, None)):
        runner = make_runner(path, quantization=wanted)
        runner.load(lambda fraction, message: None)
        answers.append(serve(runner, requests))
        runner.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("quantization", ["q4", "fp8"])
def test_exact_answers_of_quantised_weights_do_not_depend_on_company(folder, quantization):
    runner = make_runner(folder, quantization=quantization, dtype="bfloat16", exact=True)
    runner.load(lambda fraction, message: None)
    requests = some_requests(4, 131, seed=2, longest=8)
    for each in requests:
        each.params = msgspec.structs.replace(each.params, logprobs=2)

    def answers(*together: Submit) -> list[Answer]:
        session = Session(runner)
        found = session.answer([*together])
        session.end()
        return found

    alone = [answer for each in requests for answer in answers(each)]
    assert answers(*requests) == alone
    runner.close()


def test_columns_that_are_not_whole_blocks_are_refused_by_name(folder):
    card = read_card(folder)
    name = "model.layers.0.self_attn.o_proj.weight"
    tensor = card.tensors[name]
    card.tensors[name] = type(tensor)(tensor.shape, "Q6_K", 0, 0, tensor.sharing)
    assert card.formats(ALONE) == {name: "Q6_K"}
    with pytest.raises(CortexError, match=r"o_proj.*is Q6_K, in blocks of 256.*128 of its columns"):
        card.bytes_per_rank(Split.evenly(2))


def test_every_format_has_a_reading():
    for name, form in FORMATS.items():
        nothing = torch.zeros(2, form.row_bytes(256), dtype=torch.uint8)
        assert torch.equal(dequantise(name, nothing), torch.zeros(2, 256)), name


def test_a_large_weight_asks_for_large_pages():
    weight = Empty(torch.bfloat16, formats={"w": "Q8_0"}).weight("w", 8192, 1024)
    middle = weight.data.data_ptr() + weight.nbytes // 2
    flags = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:
            begin, end = (int(each, 16) for each in first.split("-"))
        elif first == "VmFlags:" and begin <= middle < end:
            flags = line
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has none")
    assert " hg" in flags


class NothingIsBrought(TorchDispatchMode):
    """Fails where numbers of Python's become a tensor: on a GPU that is a copy, and no recorded step may."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten.lift_fresh.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in TYPES])
def test_rows_are_looked_up_without_bringing_anything_to_the_device_a_second_time(name):
    form = FORMATS[name]
    rows = torch.zeros(2, form.row_bytes(4 * max(form.elements, 256)), dtype=torch.uint8)
    first = dequantise(name, rows)
    with NothingIsBrought():
        second = dequantise(name, rows)
    assert torch.equal(first, second)
