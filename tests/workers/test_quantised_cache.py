"""Copies of quantised weights: the next load has the same bits, whatever happened to the last one."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import workers.weights.loader
import workers.weights.quantised_cache as quantised_cache
from ipc.errors import CortexError
from ipc.worker_messages import WeightCache
from tests.workers import tiny_models
from tests.workers.filled import Bytes, bytes_of, same
from tests.workers.oracle import fill
from tests.workers.thread_ranks import Meeting, ThreadGroup
from tests.workers.tiny_models import WIDE
from workers.checkpoints.blocks import QUANTIZATIONS
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split
from workers.models.decoder import Decoder
from workers.parallel import RankGroup
from workers.weights.dequantise import dequantise
from workers.weights.quantised_cache import Folder, Layout, load_weights

PATIENCE = 60.0  # seconds


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    model = tiny_models.llama(**WIDE, num_hidden_layers=1, tie_word_embeddings=False)
    fill(model, std=0.1)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def model(original, tmp_path) -> Path:
    """A model whose files may be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def cache(tmp_path) -> WeightCache:
    return WeightCache(folder=str(tmp_path / "cache"), max_bytes=1 << 30)


def load(folder: Path, cache: WeightCache | None, quantization: str = "q4", size: int = 1) -> list[Bytes]:
    """What each rank has after a load."""
    card, meeting, found = read_card(folder), Meeting(size), {}

    def rank(number: int) -> None:
        group = ThreadGroup(number, size, meeting) if size > 1 else RankGroup()
        formats = card.formats(Split.evenly(size), quantization)
        model = Decoder(card.config, group, torch.bfloat16, formats)
        load_weights(card, formats, model.parts(), lambda fraction: None, group, cache)
        found[number] = bytes_of(model)

    threads = [threading.Thread(target=rank, args=[number]) for number in range(1, size)]
    for thread in threads:
        thread.start()
    rank(0)
    for thread in threads:
        thread.join(PATIENCE)
    return [found[number] for number in range(size)]


def kept(cache: WeightCache, count: int = 1) -> list[Path]:
    """The copies, once what brings them to their place has said so, and left its lock."""
    for thread in threading.enumerate():
        if thread.name == "quantised copy":
            thread.join(PATIENCE)
    folder = Path(cache.folder)
    found = sorted(folder.iterdir()) if folder.exists() else []
    assert len(found) == count
    assert all(path.suffix == ".safetensors" for path in found), f"{found} are not all copies"
    return found


@pytest.fixture
def quantised(monkeypatch) -> list[str]:
    """The formats that something was quantised to since, block by block."""
    found = []
    quantise = workers.weights.loader.quantise

    def heard(name: str, *rows: torch.Tensor) -> torch.Tensor:
        found.append(name)
        return quantise(name, *rows)

    monkeypatch.setattr(workers.weights.loader, "quantise", heard)
    return found


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_next_load_has_the_same_bits_and_quantises_nothing(
    original, cache, quantised, quantization, size
):
    plain = load(original, None, quantization, size)
    assert same(load(original, cache, quantization, size), plain)
    kept(cache)
    quantised.clear()
    assert same(load(original, cache, quantization, size), plain)
    assert not quantised


def test_a_copy_that_two_ranks_made_serves_one_and_the_other_way_round(original, cache, tmp_path, quantised):
    for first, then in ((2, 1), (1, 2)):
        other = WeightCache(folder=str(tmp_path / f"of {first}"), max_bytes=1 << 30)
        load(original, other, "fp8", first)
        kept(other)
        quantised.clear()
        again = load(original, other, "fp8", then)
        assert not quantised
        assert same(again, load(original, None, "fp8", then))


def test_a_copy_is_a_safetensors_file_of_all_rows(original, cache):
    load(original, cache, "q8", 2)
    [path] = kept(cache)
    with safe_open(path, "pt") as file:
        name = "model.layers.0.mlp.down_proj.weight"
        rows = dequantise("Q8_0", file.get_tensor(name))
    stored = load_file(original / "model.safetensors")[name].float()
    assert (rows - stored).norm() / stored.norm() < 0.006
    assert path.stat().st_mode & 0o777 == 0o600


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("workers.")]
    return [record.message for record in ours if record.levelno >= logging.WARNING]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(40)
        file.write(b"!")


@pytest.mark.parametrize("damage", [cut, overwrite, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("size", [1, 2])
def test_a_damaged_copy_is_made_again_with_a_line_in_the_log(
    original, cache, caplog, quantised, damage, size
):
    plain = load(original, cache, size=size)
    [path] = kept(cache)
    whole = path.read_bytes()
    damage(path)
    caplog.clear()
    assert same(load(original, cache, size=size), plain)
    assert kept(cache) == [path]
    [warning] = warnings(caplog)
    assert "damaged quantised copy" in warning
    assert path.read_bytes() == whole


def test_a_copy_that_cannot_be_read_to_its_end_fails_one_load_and_no_more(original, cache, monkeypatch):
    plain = load(original, cache)
    [path] = kept(cache)
    card = read_card(original)
    formats = card.formats(ALONE, "q4")
    model = Decoder(card.config, RankGroup(), torch.bfloat16, formats)
    copy = Folder(path.parent, 1 << 30).find(Layout.of(card, formats), tidy=True)
    cut(path)
    with copy, pytest.raises(CortexError, match=f"{path}: "):
        copy.load(card, model.parts(), lambda fraction: None)
    assert same(load(original, cache), plain)


def test_a_model_that_changed_is_quantised_again_and_its_old_copy_goes(model, cache):
    before = load(model, cache)
    [old] = kept(cache)
    file = model / "model.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of files are coarse
    after = load(model, cache)
    assert not same(after, before)
    assert same(after, load(model, None))
    [new] = kept(cache)
    assert new != old


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_full_disk_costs_a_warning_and_nothing_else(original, cache, caplog, monkeypatch, call, size):
    plain = load(original, None, size=size)
    monkeypatch.setattr(os, call, no_space)
    assert same(load(original, cache, size=size), plain)
    assert kept(cache, count=0) == []
    if size == 1:
        [warning] = warnings(caplog)
        assert "No space left on device" in warning


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(original, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = WeightCache(folder=str(tmp_path / "file" / "below"), max_bytes=1 << 30)
    assert same(load(original, cache), load(original, None))
    assert warnings(caplog)
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_of_two_loads_at_once_one_writes_and_both_have_the_weights(original, cache, monkeypatch):
    plain, begun, other = load(original, None), [], []
    begin = Folder.begin

    def load_beside(folder: Folder, layout: Layout):
        draft = begin(folder, layout)
        begun.append(draft)
        if len(begun) == 1:  # another process, in effect: its lock is of another open file
            other.extend(load(original, cache))
        return draft

    monkeypatch.setattr(Folder, "begin", load_beside)
    assert same(load(original, cache), plain)
    assert same(other, plain)
    assert [draft is not None for draft in begun] == [True, False]
    kept(cache)


def test_what_a_writer_that_died_left_is_written_again(original, cache, quantised):
    layout = Layout.of(card := read_card(original), card.formats(ALONE, "q4"))
    folder = Path(cache.folder)
    folder.mkdir()
    (folder / f"{layout.name}.draft").write_bytes(b"half")
    (folder / f"other-1{quantised_cache.SUFFIX}.draft").write_bytes(b"of a model that nobody loads any more")
    plain = load(original, cache)
    kept(cache)
    quantised.clear()
    assert same(load(original, cache), plain)
    assert not quantised


def bounded(cache: WeightCache, original: Path, *together: str) -> WeightCache:
    """The same with room for the copies of those quantizations."""
    card = read_card(original)
    sizes = [Layout.of(card, card.formats(ALONE, each)).size for each in together]
    return WeightCache(folder=cache.folder, max_bytes=sum(sizes))


def test_what_was_loaded_longest_ago_makes_room(original, cache, quantised):
    cache = bounded(cache, original, "q8", "q8")
    for count, quantization in enumerate(("q8", "q4"), 1):
        load(original, cache, quantization)
        kept(cache, count)
    load(original, cache, "q8")
    load(original, cache, "q6")
    kept(cache, 2)
    quantised.clear()
    load(original, cache, "q8")
    assert not quantised
    load(original, cache, "q4")
    assert quantised
    kept(cache, 2)


def test_what_is_being_read_is_not_deleted_to_make_room(original, cache):
    cache = bounded(cache, original, "q8")
    load(original, cache, "q8")
    [path] = kept(cache)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        load(original, cache, "q4")
        assert kept(cache) == [path]


def test_what_has_no_room_at_all_is_not_kept(original, cache):
    plain = load(original, None)
    assert same(load(original, WeightCache(folder=cache.folder, max_bytes=1000)), plain)
    assert not Path(cache.folder).exists()


def test_a_weight_that_no_rank_wrote_makes_no_copy(original, cache, monkeypatch):
    write: Callable = quantised_cache.Draft.write

    def forget(draft, piece, made) -> None:
        if "o_proj" not in piece.name:
            write(draft, piece, made)

    monkeypatch.setattr(quantised_cache.Draft, "write", forget)
    load(original, cache)
    assert kept(cache, count=0) == []


def test_what_is_not_quantised_is_not_copied(original, cache):
    card = read_card(original)
    model = Decoder(card.config, RankGroup(), torch.bfloat16)
    load_weights(card, card.formats(ALONE), model.parts(), lambda fraction: None, RankGroup(), cache)
    assert not Path(cache.folder).exists()
