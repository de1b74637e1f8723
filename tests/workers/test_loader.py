"""Reading weights: every rank its own, bit for bit, and an error that names the file and the tensor."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import workers.weights.lanes
import workers.weights.loader
from ipc.errors import Code, CortexError
from tests.workers.cards import card_of
from workers.checkpoints.reading import read_card
from workers.models.decoder import Decoder
from workers.parallel import RankGroup
from workers.weights.loader import Shard, Slice, WeightFiles
from workers.weights.reading import AT_ONCE, SKIPPED


def read(
    folder: Path, pieces: list[Slice], progress: Callable[[float], None] = lambda fraction: None
) -> None:
    WeightFiles(card_of(folder)).load([Shard(pieces)], progress)


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
        pieces = pieces_of(Decoder(read_card(folder).config, RankGroup(rank, size), dtype))
        read(folder, pieces)
        assert {piece.name for piece in pieces} == set(tensors)
        for piece in pieces:
            assert torch.equal(piece.into, block_of(piece, tensors[piece.name]).to(dtype))


def test_the_ranks_parts_make_the_whole_vocabulary(tiny):
    folder = tiny("llama_untied_linear").folder
    parts = []
    for rank in range(4):
        model = Decoder(read_card(folder).config, RankGroup(rank, 4), torch.float32)
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
    counts = counted(monkeypatch)
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
    WeightFiles(card_of(tmp_path)).load(parts, lambda fraction: None)
    assert sorted(finished, key=len) == [{"c": True}, {"a": True, "b": True}]


def test_what_a_finish_replaces_is_freed_while_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.weights.lanes, "threads_for", lambda device: 1)
    save_file({name: torch.randn(64, 8) for name in "ab"}, tmp_path / "model.safetensors")
    memory = numpy.empty((64, 8), numpy.float32)
    gone, weights = weakref.ref(memory), [torch.from_numpy(memory)]
    del memory
    seen = []

    def parts():
        yield Shard([Slice("a", (64, 8), weights[0])], weights.clear)
        yield Shard([Slice("b", (64, 8), torch.empty(64, 8))], lambda: seen.append(gone()))

    WeightFiles(card_of(tmp_path)).load(parts(), lambda fraction: None)
    assert seen == [None]


def test_progress_grows_to_one(tiny, monkeypatch):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)
    folder = tiny("llama_untied_linear").folder
    heard: list[float] = []
    read(folder, pieces_of(Decoder(read_card(folder).config, RankGroup(), torch.float32)), heard.append)
    assert heard == sorted(heard)
    assert heard[0] < 0.5
    assert heard[-1] == 1.0


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16], ids=str)
def test_a_column_shard_reads_only_its_columns(tmp_path, monkeypatch, wanted):
    between = SKIPPED // 4 + 1
    tensor = torch.randn(8, between + 6)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    counts = counted(monkeypatch)
    into = torch.empty(8, 6, dtype=wanted)
    read(tmp_path, [Slice("w", tuple(tensor.shape), into, column=12)])
    assert torch.equal(into, tensor[:, 12:18].to(wanted))
    assert sum(counts) == 8 * 6 * 4


@pytest.mark.parametrize("column", [0, 12, 18])
def test_where_its_columns_are_close_one_call_reads_many_rows(tmp_path, monkeypatch, column):
    rows = AT_ONCE + 3
    tensor = torch.randn(rows, 24)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    counts = counted(monkeypatch)
    into = torch.empty(rows, 6)
    read(tmp_path, [Slice("w", (rows, 24), into, column=column)])
    assert torch.equal(into, tensor[:, column : column + 6])
    assert len(counts) == 2


def test_a_call_that_is_interrupted_between_rows_is_made_good(tmp_path, monkeypatch):
    tensor = torch.randn(64, 24)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:8]], at))
    into = torch.empty(64, 6)
    read(tmp_path, [Slice("w", (64, 24), into, column=12)])
    assert torch.equal(into, tensor[:, 12:18])


def counted(monkeypatch) -> list[int]:
    """The bytes of each call to come."""
    counts, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: counts.append(preadv(*args)) or counts[-1])
    return counts


# --- files that are wrong ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_file({"w": torch.randn(4, 6)}, tmp_path / "model.safetensors")
    return tmp_path


def load_after(folder: Path, change: Callable[[Path], None]) -> str:
    """How a load is refused whose file changes between its card and it."""
    files = WeightFiles(card_of(folder))
    change(folder / "model.safetensors")
    with pytest.raises(CortexError) as caught:
        files.load([Shard([Slice("w", (4, 6), torch.empty(4, 6))])], lambda fraction: None)
    assert caught.value.code == Code.MODEL_LOAD_FAILED
    return caught.value.message


def test_a_file_that_changed_since_its_card_was_read_is_named(folder):
    def write_again(file: Path) -> None:
        save_file({"w": torch.randn(4, 6)}, file)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of files are coarse

    message = load_after(folder, write_again)
    assert message == f"{folder}/model.safetensors: has changed since its header was read"


def test_a_file_that_is_gone_is_named(folder):
    assert f"{folder}/model.safetensors: cannot be read" in load_after(folder, Path.unlink)


def test_a_file_that_shrinks_while_it_is_read_is_named(folder, monkeypatch):
    monkeypatch.setattr(WeightFiles, "_check_files", lambda files: None)  # it does so a moment later
    message = load_after(folder, lambda file: os.truncate(file, file.stat().st_size - 50))
    assert message == f"{folder}/model.safetensors: was cut short while tensor w was read"


@pytest.mark.parametrize("column", [0, 2], ids=["rows", "columns"])
def test_a_disk_that_fails_while_it_is_read_is_told_from_a_short_file(folder, monkeypatch, column):
    def failing(fd, buffers, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    at = 8 * (1 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little") // 8)
    with pytest.raises(CortexError) as caught:
        read(folder, [Slice("w", (4, 6), torch.empty(4, 6 - column), column=column)])
    assert caught.value.code == Code.MODEL_LOAD_FAILED
    assert caught.value.message == (
        f"{folder}/model.safetensors: could not be read (Input/output error, at byte {at + 4 * column}) "
        "while tensor w was read"
    )


def test_a_file_that_is_written_while_it_is_read_is_no_model(folder):
    file = folder / "model.safetensors"

    def write(fraction: float) -> None:
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))

    with pytest.raises(CortexError, match=r"model.safetensors: has changed since its header was read"):
        read(folder, [Slice("w", (4, 6), torch.empty(4, 6))], write)


def test_after_a_failure_no_other_block_is_read_and_no_thread_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 32)
    save_file({"w": torch.randn(1000, 8)}, tmp_path / "model.safetensors")
    calls = []

    def failing(fd, buffers, offset):
        calls.append(offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    before = threading.active_count()
    with pytest.raises(CortexError, match="Input/output error"):
        read(tmp_path, [Slice("w", (1000, 8), torch.empty(1000, 8))])
    assert len(calls) <= workers.weights.lanes.THREADS
    assert threading.active_count() == before
