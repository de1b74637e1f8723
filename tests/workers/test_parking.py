"""Weights that were parked: a model woken from memory is the one that was loaded from files, to the bit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ipc import parked
from tests.workers import checkpoints, encoders, tiny_models
from tests.workers.engines import make_runner, serve, some_requests
from tests.workers.filled import bytes_of, same
from tests.workers.oracle import fill
from tests.workers.thread_ranks import Meeting, ThreadGroup
from tests.workers.tiny_models import WIDE
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import Split
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights import parking
from workers.weights.loader import Shard, WeightFiles

# tied and not, stacked experts, latent attention, blocks on disk
NAMES = ["llama_tied_llama3", "qwen3_untied_biased", "qwen3_moe", "deepseek_v3", "gpt_oss_mxfp4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """Checkpoints by name, each written once."""
    there: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in there:
            there[name] = tmp_path_factory.mktemp(name)
            checkpoints.write(name, there[name])
        return there[name]

    return folder


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """Makes descriptors as a supervisor does."""
    fds: list[int] = []

    def make() -> int:
        fds.append(parked.create("test"))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def load(folder: Path, fds: list[int], size: int = 1, quantization: str | None = None):
    """What each rank has after a load with that memory, and whether it came from there."""
    card, meeting, found = read_card(folder), Meeting(size), {}

    def rank(number: int) -> None:
        group = ThreadGroup(number, size, meeting) if size > 1 else RankGroup()
        formats = card.formats(Split.evenly(size), quantization)
        model = MODELS[card.family](card.config, group, torch.bfloat16, formats)

        def parts() -> list[Shard]:
            return [Shard(part.pieces) for part in model.parts()]  # unfinished, so that they can be looked at

        def read(shards) -> None:
            WeightFiles(card).load(shards, lambda fraction: None)

        fd = os.dup(fds[number]) if fds else None
        woken = parking.load(fd, parts, lambda fraction: None, group, read)
        found[number] = bytes_of(model), woken

    threads = [threading.Thread(target=rank, args=[number]) for number in range(1, size)]
    for thread in threads:
        thread.start()
    rank(0)
    for thread in threads:
        thread.join(20)
    return [found[number][0] for number in range(size)], {found[number][1] for number in range(size)}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_woken_is_what_was_loaded_on_every_rank(folders, memory, name, size):
    fds = [memory() for _ in range(size)]
    plain, _ = load(folders(name), [], size)
    filled, woken = load(folders(name), fds, size)
    assert woken == {False}
    assert same(filled, plain)
    for fd in fds:
        assert parked.seal(fd) >= parked.HEAD
    again, woken = load(folders(name), fds, size)
    assert woken == {True}
    assert same(again, plain)


@pytest.mark.parametrize("quantization", ["q8", "q4", "fp8"])
def test_what_quantisation_made_is_woken_and_not_made_again(
    tmp_path_factory, memory, monkeypatch, quantization
):
    folder = tmp_path_factory.mktemp("wide")
    model = tiny_models.llama(**WIDE, num_hidden_layers=1)
    fill(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    fds = [memory()]
    filled, _ = load(folder, fds, 1, quantization)
    monkeypatch.setattr(WeightFiles, "load", None)  # no file is read
    again, woken = load(folder, fds, 1, quantization)
    assert woken == {True}
    assert same(again, filled)


@pytest.mark.parametrize("refused", [False, True])
def test_all_that_is_parked_has_been_read_before_a_wake_reads_it(folders, memory, monkeypatch, refused):
    read, send = [], os.sendfile

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        if refused:
            raise OSError(22, "Invalid argument")
        sent = send(out, fd, offset, min(count, 3000))  # less than asked for, as a kernel may
        read.append((offset, offset + sent))
        return sent

    monkeypatch.setattr(parking.os, "sendfile", sendfile)
    filled, _ = load(folders("qwen3_moe"), fds := [memory()])
    again, woken = load(folders("qwen3_moe"), fds)
    assert woken == {True}
    assert same(again, filled)
    if refused:
        return
    assert max(end for _, end in read) == os.fstat(fds[0]).st_size
    gaps = [start - end for (_, end), (start, _) in pairwise(sorted(read))]
    assert all(0 <= gap < parking.ALIGNED for gap in gaps)
    assert min(read)[0] == parked.HEAD


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_woken_engine_gives_the_same_answers_in_no_more_memory(folders, memory, dtype):
    requests, fd = some_requests(6, 96, seed=1, longest=10), memory()
    answers, loaded = [], []
    for given in (None, fd, fd):
        runner = make_runner(
            folders("qwen3_untied_biased"),
            dtype=dtype,
            max_step_tokens=64,
            max_sequences=8,
            parking_fd=None if given is None else os.dup(given),
        )
        loaded.append(runner.load(lambda fraction, message: None))
        answers.append(serve(runner, requests, max_step_tokens=64))
        runner.close()
    assert answers[0] == answers[1] == answers[2]
    assert [each.woken for each in loaded] == [False, False, True]
    assert len({each.memory.weights for each in loaded}) == 1


def test_a_woken_encoder_gives_the_same_vectors(tmp_path, memory):
    encoders.write("bert", tmp_path)
    fd, inputs, vectors = memory(), encoders.texts(4), []
    for _ in range(2):
        runner = encoders.load(tmp_path, parking_fd=os.dup(fd))
        vectors.append(torch.stack(encoders.vectors(runner, inputs)))
        runner.close()
    assert parked.digest_of(fd) is not None
    assert torch.equal(*vectors)


def test_a_rank_whose_memory_is_not_whole_has_all_of_them_read_files(folders, memory):
    folder, fds = folders("llama_tied_llama3"), [memory(), memory()]
    plain, _ = load(folder, [], 2)
    load(folder, fds, 2)
    os.ftruncate(fds[1], os.fstat(fds[1]).st_size - 1)
    again, woken = load(folder, fds, 2)
    assert woken == {False}
    assert same(again, plain)


def test_what_another_model_parked_is_not_taken_for_this_one(folders, memory, caplog):
    fds = [memory()]
    load(folders("llama_tied_llama3"), fds)
    parked.seal(fds[0])
    plain, _ = load(folders("qwen3_moe"), [])
    again, woken = load(folders("qwen3_moe"), fds)
    assert woken == {False}
    assert same(again, plain)
    assert "parked weights are not those of this model" in caplog.text


def test_a_load_that_ends_early_leaves_no_half(folders, memory):
    fd, count = memory(), 0

    def stop(fraction: float) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise InterruptedError

    card = read_card(folders("qwen3_moe"))
    model = MODELS[card.family](card.config, RankGroup(), torch.bfloat16, {})
    with suppress(InterruptedError):
        parking.load(
            os.dup(fd),
            model.parts,
            lambda fraction: None,
            RankGroup(),
            lambda shards: WeightFiles(card).load(shards, stop),
        )
    assert os.fstat(fd).st_size > 0
    assert parked.digest_of(fd) is None


def test_memory_that_cannot_be_had_is_a_line_in_the_log_and_no_failure(folders, memory, monkeypatch, caplog):
    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    fds = [memory()]
    monkeypatch.setattr(parking.os, "pwrite", full)
    filled, _ = load(folders("llama_tied_llama3"), fds)
    monkeypatch.undo()
    assert same(filled, load(folders("llama_tied_llama3"), [])[0])
    assert "weights cannot be parked: [Errno 28]" in caplog.text
    assert (parked.digest_of(fds[0]), os.fstat(fds[0]).st_size) == (None, 0)
