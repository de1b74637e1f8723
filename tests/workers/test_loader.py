"""Reading weights: every rank its own, bit for bit, and an error that names the file and the tensor."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import workers.weights.loader
from ipc.errors import Code, CortexError
from workers.checkpoints.config import read_config
from workers.models.decoder import Decoder
from workers.parallel import RankGroup
from workers.weights.loader import Shard, Slice, WeightFiles


def read(
    folder: Path, pieces: list[Slice], progress: Callable[[float], None] = lambda fraction: None
) -> None:
    WeightFiles(folder).load([Shard(pieces)], progress)


def pieces_of(model: Decoder) -> list[Slice]:
    return [piece for part in model.parts() for piece in part.pieces]


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def block_of(piece: Slice, whole: torch.Tensor) -> torch.Tensor:
    rows = whole[piece.row : piece.row + piece.into.shape[0]]
    return rows if rows.dim() == 1 else rows[:, piece.column : piece.column + piece.into.shape[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["qwen3_untied_biased", "llama_yarn_biased", "llama_one_key_head_sharded"])
def test_every_rank_reads_its_own_part_bit_for_bit(tiny, monkeypatch, name, size, dtype):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)  # so that tiny tensors have several blocks too
    folder = tiny(name).folder
    tensors = all_tensors(folder)
    for rank in range(size):
        pieces = pieces_of(Decoder(read_config(folder), RankGroup(rank, size), dtype))
        read(folder, pieces)
        assert {piece.name for piece in pieces} == set(tensors)
        for piece in pieces:
            assert torch.equal(piece.into, block_of(piece, tensors[piece.name]).to(dtype))


def test_the_ranks_parts_make_the_whole_vocabulary(tiny):
    folder = tiny("llama_untied_linear").folder
    parts = []
    for rank in range(4):
        model = Decoder(read_config(folder), RankGroup(rank, 4), torch.float32)
        read(folder, pieces_of(model))
        parts.append(model.head.weight)
    whole = all_tensors(folder)["lm_head.weight"]
    assert torch.equal(torch.cat(parts)[: len(whole)], whole)
    assert not torch.cat(parts)[len(whole) :].any(), "padding must be zero"


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32], ids=str)
def test_weights_are_converted_as_torch_converts_them(tmp_path, stored, wanted):
    tensor = torch.randn(33, 7).to(stored)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    into = torch.empty(20, 7, dtype=wanted)
    read(tmp_path, [Slice("w", (33, 7), into, row=5)])
    assert torch.equal(into, tensor[5:25].to(wanted))


def test_a_row_shard_reads_only_its_rows(tmp_path, monkeypatch):
    save_file({"w": torch.randn(64, 8)}, tmp_path / "model.safetensors")
    counts = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: counts.append(preadv(*args)) or counts[-1])
    read(tmp_path, [Slice("w", (64, 8), torch.empty(16, 8), row=16)])
    assert sum(counts) == 16 * 8 * 4


def test_a_part_is_finished_once_when_all_of_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 64)
    tensors = {name: torch.randn(64, 8) for name in "abc"}
    save_file(tensors, tmp_path / "model.safetensors")
    into = {name: torch.zeros(64, 8) for name in "abc"}
    finished = []

    def finish(*names: str):
        return lambda: finished.append({name: torch.equal(into[name], tensors[name]) for name in names})

    pieces = {name: Slice(name, (64, 8), into[name]) for name in "abc"}
    parts = [Shard([pieces["a"], pieces["b"]], finish("a", "b")), Shard([pieces["c"]], finish("c"))]
    WeightFiles(tmp_path).load(parts, lambda fraction: None)
    assert sorted(finished, key=len) == [{"c": True}, {"a": True, "b": True}]


def test_what_a_finish_replaces_is_freed_while_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.weights.loader, "THREADS", 1)
    save_file({name: torch.randn(64, 8) for name in "ab"}, tmp_path / "model.safetensors")
    memory = numpy.empty((64, 8), numpy.float32)
    gone, weights = weakref.ref(memory), [torch.from_numpy(memory)]
    del memory
    seen = []

    def parts():
        yield Shard([Slice("a", (64, 8), weights[0])], weights.clear)
        yield Shard([Slice("b", (64, 8), torch.empty(64, 8))], lambda: seen.append(gone()))

    WeightFiles(tmp_path).load(parts(), lambda fraction: None)
    assert seen == [None]


def test_progress_grows_to_one(tiny, monkeypatch):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)
    folder = tiny("llama_untied_linear").folder
    heard: list[float] = []
    read(folder, pieces_of(Decoder(read_config(folder), RankGroup(), torch.float32)), heard.append)
    assert heard == sorted(heard)
    assert heard[0] < 0.5
    assert heard[-1] == 1.0


# --- files that are wrong ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_file({"w": torch.randn(4, 6), "n": torch.arange(4)}, tmp_path / "model.safetensors")
    return tmp_path


def refusal(folder: Path, name: str = "w", shape: tuple[int, ...] = (4, 6)) -> str:
    with pytest.raises(CortexError) as caught:
        read(folder, [Slice(name, shape, torch.empty(shape))])
    assert caught.value.code == Code.MODEL_LOAD_FAILED
    return caught.value.message


def test_a_missing_tensor_is_named(folder):
    assert f"{folder}: tensor model.norm.weight is missing" in refusal(folder, "model.norm.weight")


def test_another_shape_is_named_with_both(folder):
    message = refusal(folder, shape=(4, 8))
    assert message == f"{folder}/model.safetensors: tensor w has shape [4, 6], but config.json implies [4, 8]"


def test_a_tensor_of_integers_is_refused(folder):
    assert "model.safetensors: tensor n has type I64, which is not supported" in refusal(folder, "n", (4,))


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 5)
    assert f"{file}: truncated: tensor" in refusal(folder)


def test_a_file_that_shrinks_while_it_is_read_is_named(folder):
    file = folder / "model.safetensors"
    checkpoint = WeightFiles(folder)
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(CortexError, match="truncated while tensor w was read"):
        checkpoint.load([Shard([Slice("w", (4, 6), torch.empty(4, 6))])], lambda fraction: None)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-2.safetensors"}})
    )
    assert refusal(folder) == f"{folder}/model-2.safetensors: No such file or directory"


def test_a_folder_without_weights_is_named(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}/model.safetensors: No such file or directory"


def test_an_index_that_is_no_index_is_named(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    assert "model.safetensors.index.json: " in refusal(folder)


HEADERS = {
    "nan": b'{"w": {"dtype": "F32", "shape": [4, NaN], "data_offsets": [0, 96]}}',
    "no json": b"\xff\xfe{}",
    "no shape": b'{"w": {"dtype": "F32", "data_offsets": [0, 96]}}',
    "backwards": b'{"w": {"dtype": "F32", "shape": [4, 6], "data_offsets": [96, 0]}}',
    "too small": b'{"w": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 95]}}',
    "too far": b'{"w": {"dtype": "F32", "shape": [4, 6], "data_offsets": [96, 192]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_bad_header_is_an_error_that_names_the_file(folder, header):
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(96))
    assert str(file) in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\1\0", (1 << 60).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "truncated, or no safetensors" in refusal(folder)
