"""Ranks that add small tensors in memory which all of them have."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from math import isnan
from multiprocessing.reduction import DupFd

import pytest
import torch

from ipc.memory import SharedMemory
from ipc.worker_messages import SUM_BYTES
from tests.workers.engines import GPU
from tests.workers.interpreted import Interpreted
from tests.workers.ranks import in_processes

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="torch for the CPU has no Triton")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreted]:
    with Interpreted() as process:
        yield process


@pytest.mark.parametrize(("size", "rounds"), [(2, 60), (3, 30), (4, 20), (8, 8)])
def test_every_rank_has_the_sum_in_the_order_of_ranks(interpreted, size, rounds):
    assert interpreted("one_shot", "wrong_sums", size, rounds) == [[]] * size


@pytest.mark.parametrize("cards", [pytest.param(1, marks=GPU), pytest.param(2, marks=GPU)])
def test_so_it_is_on_gpus_as_launches_come_and_as_they_were_recorded(cards):
    """Two processes may share a card, which runs them by turns."""
    from tests.workers.one_shot_sums import be

    if torch.cuda.device_count() < cards:
        pytest.skip("there is one GPU")
    memory = SharedMemory.create("sums", SUM_BYTES)
    found = in_processes(2, be, lambda rank: (DupFd(memory.fd), rank, 2, f"cuda:{rank % cards}", 60))
    memory.close()
    assert found == [[], []]


def test_launches_are_counted_beyond_what_a_tag_holds(interpreted):
    assert interpreted("one_shot", "wrong_sums", 2, 12, -4) == [[]] * 2


def test_a_rank_that_does_not_come_is_not_waited_for_without_end(interpreted):
    *others, last = interpreted("one_shot", "lost")
    assert last == [[7.0]]
    for first, *rest in others:
        assert first == [7.0]
        assert [len(numbers) > 0 and all(map(isnan, numbers)) for numbers in rest] == [True, True]


@pytest.mark.parametrize("case", ["shared", "exact"])
def test_a_group_adds_small_tensors_itself_once_every_rank_has_seen_it_right(interpreted, case):
    for found in interpreted("one_shot", "meeting", case):
        assert found["lines"] == ["small sums are made in the host's memory most_bytes=4096"]
        assert found["small"]
        assert found["right"] == [True] * 4
        assert found["library"] == [False, True, False, True]  # of no whole word, and too large
        assert found["collectives"] == 4


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("own", ["what came of a trial is wrong"] * 2),
        ("none", [None, "ValueError: mmap length is greater than file size"]),
    ],
)
def test_where_one_rank_cannot_all_leave_it_to_the_library(interpreted, case, lines):
    for found, line in zip(interpreted("one_shot", "meeting", case), lines, strict=True):
        assert found["lines"] == ([f"small sums are the library's, too: {line}"] if line else [])
        assert not found["small"]
        assert found["right"] == [True] * 4
        assert found["library"] == [True] * 4


def test_small_tensors_of_whole_words_are_added_so():
    from workers.kernels.one_shot_triton import OneShot

    memory = SharedMemory.create("sums", SUM_BYTES)
    two, eight = (OneShot(memory.fd, 0, size, torch.device("cpu")) for size in (2, 8))
    memory.close()
    assert [two.most_bytes, eight.most_bytes] == [128 << 10, 32 << 10]
    x = torch.empty(2, 1 << 15, dtype=torch.bfloat16)
    assert [each.takes(x) for each in (two, eight)] == [True, False]
    assert [eight.takes(x[0, :count]) for count in (1 << 14, 3, 2, 0)] == [True, False, True, False]
    assert [two.takes(x[0].to(dtype)) for dtype in (torch.float32, torch.int64)] == [True, False]
