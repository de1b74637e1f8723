"""Weights on their way to a device: a recorder copies when somebody waits for a copy, and no sooner."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import workers.weights.lanes
import workers.weights.loader
from ipc import parked
from tests.workers.cards import card_of
from tests.workers.engines import DEVICES, GPU
from workers.parallel import RankGroup
from workers.weights import parking
from workers.weights.lanes import THREADS, CudaTransfers, Lane, release_pinned, run
from workers.weights.loader import Shard, Slice, WeightFiles


class Late:
    """A device whose copies are made when somebody waits for them, and not before."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[torch.Tensor]] = []  # memory that was asked for
        self.most = 0  # copies under way at once
        self.under_way = 0
        self.released = False  # its memory, by whoever has it beside this one

    def memory(self, size: int) -> torch.Tensor:
        made = torch.empty(size, dtype=torch.uint8)
        self.made.append(weakref.ref(made))
        return made

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> Copy:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return Copy(self, source, into)


class Copy:
    def __init__(self, device: Late, source: torch.Tensor, into: torch.Tensor) -> None:
        self.device, self.source, self.into = device, source, into

    def synchronize(self) -> None:
        self.into.copy_(self.source)
        self.device.under_way -= 1


@pytest.fixture
def late(monkeypatch):
    """All tensors are on such a device; a list of those that threads have made."""
    devices: list[Late] = []

    def nothing_is_left() -> None:
        assert not any(memory() is not None for device in devices for memory in device.made)
        for device in devices:
            device.released = True

    def made(device: torch.device) -> Late:
        devices.append(mine := Late())
        return mine

    def always(jobs, device, total, progress) -> None:
        run(jobs, torch.device("meta"), total, progress, made, nothing_is_left)

    for module in (workers.weights.loader, parking):
        monkeypatch.setattr(module, "run", always)
        monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setattr(workers.weights.lanes, "BLOCK", 256)
    return devices


def test_one_block_is_read_while_another_travels_and_none_is_written_over(late, tmp_path):
    tensors = {"a": torch.randn(64, 8), "b": torch.randn(40, 24).bfloat16(), "c": torch.randn(33)}
    save_file(tensors, tmp_path / "model.safetensors")
    into = {
        "a": torch.zeros(64, 8),
        "b": torch.zeros(40, 12),  # of another type, and half of its columns
        "c": torch.zeros(33),
    }
    finished = []

    def finish() -> None:
        finished.append(all(torch.equal(into[name], expected[name]) for name in tensors))

    expected = {"a": tensors["a"], "b": tensors["b"][:, 12:].float(), "c": tensors["c"]}
    pieces = [
        Slice(name, tuple(tensors[name].shape), into[name], column=12 * (name == "b")) for name in tensors
    ]
    WeightFiles(card_of(tmp_path)).load([Shard(pieces, finish)], lambda fraction: None)
    assert finished == [True]
    assert max(device.most for device in late) == 2
    assert all(device.under_way == 0 for device in late)
    assert all(len(device.made) <= 2 for device in late), "memory is used again"
    assert all(device.released for device in late), "and is kept by nobody afterwards"


def test_what_is_parked_needs_no_way_back_and_wakes_by_the_same_way(late, tmp_path):
    tensors = {"a": torch.randn(64, 8), "c": torch.randn(33)}
    save_file(tensors, tmp_path / "model.safetensors")
    fd = parked.create("test")

    def load() -> tuple[bool, dict[str, torch.Tensor]]:
        into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

        def parts() -> list[Shard]:
            return [Shard([Slice(name, tuple(into[name].shape), into[name])]) for name in into]

        def read(shards) -> None:
            WeightFiles(card_of(tmp_path)).load(shards, lambda fraction: None)

        return parking.load(os.dup(fd), parts, lambda fraction: None, RankGroup(), read), into

    for woken in (False, True):
        late.clear()
        came_from_memory, into = load()
        assert came_from_memory == woken
        assert all(torch.equal(into[name], tensors[name]) for name in tensors)
        assert max(device.most for device in late) == 2
    os.close(fd)


def test_what_is_there_is_let_go_of_before_the_next_block_is_done(monkeypatch):
    monkeypatch.setattr(workers.weights.lanes, "threads_for", lambda device: 1)
    first = torch.zeros(4)
    gone, seen = weakref.ref(first), []

    class Block:
        def __init__(self, into: torch.Tensor) -> None:
            self.into = into

        def __call__(self, lane: Lane) -> int:
            lane.send(lane.place(self.into).fill_(1), self.into, lambda: seen.append(gone() is None))
            return self.into.nbytes

    jobs, fractions = deque([Block(first), Block(torch.zeros(4))]), []
    total = 2 * first.nbytes
    del first
    run(jobs, torch.device("cpu"), total, fractions.append)
    assert seen[-1] is True
    assert fractions == [0.5, 1.0]


@pytest.mark.parametrize("fails", ["job", "arrival", "progress"])
def test_the_first_failure_is_raised_and_all_threads_end(fails):
    def fail(when: str) -> None:
        if fails == when:
            raise InterruptedError(when)

    def job(lane: Lane) -> int:
        fail("job")
        into = torch.zeros(4)
        lane.send(lane.place(into), into, lambda: fail("arrival"))
        return into.nbytes

    jobs, before = deque([job] * 1000), threading.active_count()
    with pytest.raises(InterruptedError, match=fails):
        run(jobs, torch.device("cpu"), 16 * len(jobs), lambda fraction: fail("progress"))
    assert not jobs
    assert threading.active_count() == before


def test_where_one_of_many_fails_the_others_are_not_begun():
    failed, done = threading.Event(), []

    def fails(lane: Lane) -> int:
        failed.set()
        raise InterruptedError("the first")

    def job(lane: Lane) -> int:
        failed.wait()
        time.sleep(0.05)  # in which the failure is seen
        done.append(lane)
        return 16

    with pytest.raises(InterruptedError, match="the first"):
        run(deque([fails] + [job] * 60), torch.device("cpu"), 16 * 61, lambda fraction: None)
    assert len(done) <= 2 * THREADS


def test_nothing_travels_any_more_once_a_failure_is_raised(late, monkeypatch):
    monkeypatch.setattr(workers.weights.lanes, "threads_for", lambda device: 1)
    into = torch.zeros(4)

    def job(lane: Lane) -> int:
        if jobs:  # there is one more
            lane.send(lane.place(into), into, lambda: None)
            return into.nbytes
        raise InterruptedError("the second")

    def made(device: torch.device) -> Late:
        late.append(mine := Late())
        return mine

    jobs = deque([job, job])
    with pytest.raises(InterruptedError, match="the second"):
        run(jobs, torch.device("meta"), 2 * into.nbytes, lambda fraction: None, made, lambda: None)
    assert [device.under_way for device in late] == [0] * len(late)


@pytest.mark.parametrize("device", DEVICES)
def test_the_bytes_are_the_same_on_every_device(tmp_path: Path, device, monkeypatch):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)
    tensor = torch.randn(64, 24)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    for column, dtype in ((0, torch.float32), (12, torch.float32), (12, torch.bfloat16)):
        into = torch.zeros(64, 12, device=device, dtype=dtype)
        pieces = [Slice("w", (64, 24), into, column=column)]
        WeightFiles(card_of(tmp_path)).load([Shard(pieces)], lambda fraction: None)
        assert torch.equal(into.cpu(), tensor[:, column : column + 12].to(dtype))


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_memory_for_copies_to_a_gpu_is_pinned(device):
    transfers = CudaTransfers(torch.device(device))
    source, into = transfers.memory(64), torch.zeros(64, dtype=torch.uint8, device=device)
    assert source.is_pinned()
    source.fill_(7)
    transfers.copy(source, into).synchronize()
    assert into.tolist() == [7] * 64


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_none_of_it_is_pinned_after_a_load(tmp_path: Path, device):
    release_pinned()
    before = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    tensor = torch.randn(64, 24)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    into = torch.zeros(64, 24, device=device)
    WeightFiles(card_of(tmp_path)).load([Shard([Slice("w", (64, 24), into)])], lambda fraction: None)
    assert torch.equal(into.cpu(), tensor)
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] <= before
