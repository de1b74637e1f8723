"""Limits are exact, whoever counts; no clock, disk or process that stands still locks anybody out."""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.access import limits as module
from gateway.access.limits import DAY, MINUTE, Limit, Limits
from gateway.store.key_store import Terms

NOON = 20_000 * DAY + DAY // 2 + 15.0  # 15 seconds into a minute


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [NOON]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


def admitted(limits: Limits, terms: Terms, tries: int, number: int = 1) -> int:
    return sum(not spent(limits, terms, number) for _ in range(tries))


def spent(limits: Limits, terms: Terms, number: int = 1) -> list[Limit]:
    """The limits that forbid another request, which is counted where there are none."""
    return [limit for limit in limits.admit(number, terms) if not limit.left]


def test_requests_of_a_minute_and_of_a_day(tmp_path: Path, clock: list[float]) -> None:
    limits, terms = Limits(tmp_path / "limits"), Terms(requests_per_minute=3, requests_per_day=5)
    assert admitted(limits, terms, 10) == 3
    (reached,) = spent(limits, terms)
    assert (reached.what, reached.period, reached.allowed, reached.reset) == ("requests", "minute", 3, 45.0)
    clock[0] += MINUTE
    assert admitted(limits, terms, 10) == 2
    assert [limit.period for limit in spent(limits, terms)] == ["day"]
    clock[0] += DAY
    assert admitted(limits, terms, 10) == 3
    assert admitted(limits, terms, 10, number=2) == 3  # another key


def test_tokens_count_when_they_are_known(tmp_path: Path, clock: list[float]) -> None:
    limits, terms = Limits(tmp_path / "limits"), Terms(tokens_per_minute=100, tokens_per_day=150)
    assert not spent(limits, terms)
    limits.charge(1, 90)
    assert [limit.left for limit in limits.admit(1, terms)] == [10, 60]
    limits.charge(1, 70)
    assert [limit.period for limit in spent(limits, terms)] == ["minute", "day"]
    clock[0] += DAY
    assert not spent(limits, terms)


def test_limit_of_nothing_allows_nothing(tmp_path: Path) -> None:
    assert admitted(Limits(tmp_path / "limits"), Terms(tokens_per_day=0), 2) == 0


@pytest.mark.parametrize("jump", [-400 * DAY, -MINUTE, MINUTE, 400 * DAY])
def test_clock_that_jumps_locks_nobody_out(tmp_path: Path, clock: list[float], jump: float) -> None:
    limits, terms = Limits(tmp_path / "limits"), Terms(requests_per_minute=3)
    assert admitted(limits, terms, 4) == 3
    clock[0] += jump
    assert admitted(limits, terms, 4) == 3


def test_counts_outlive_the_process(tmp_path: Path, clock: list[float]) -> None:
    terms = Terms(requests_per_day=3)
    assert admitted(Limits(tmp_path / "limits"), terms, 2) == 2
    assert admitted(Limits(tmp_path / "limits"), terms, 2) == 1


def test_a_file_that_is_deleted_is_the_next_one_for_all(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    path, terms = tmp_path / "limits", Terms(requests_per_day=3)
    before = Limits(path)
    assert admitted(before, terms, 4) == 3
    path.unlink()
    after = Limits(path)
    assert admitted(after, terms, 2) == 2
    assert admitted(before, terms, 4) == 1
    assert admitted(after, terms, 4) == 0


@pytest.mark.parametrize("count", [-1, -(1 << 63), (1 << 63) - 1])
def test_counts_that_nobody_can_have_come_to_are_none(tmp_path: Path, clock: list[float], count: int) -> None:
    limits, terms = Limits(tmp_path / "limits"), Terms(requests_per_day=2, tokens_per_day=10)
    limits.admit(1, terms)
    this = int(NOON // MINUTE), int(NOON // DAY)
    damaged = struct.pack("=6q", *this, count, 1, 0, count)
    (tmp_path / "limits").write_bytes(2 * damaged)
    assert [limit.left for limit in limits.admit(1, terms)] == [2, 10]
    limits.charge(1, 4)
    assert [limit.left for limit in limits.admit(1, terms)] == [1, 6]
    limits.close()


def test_several_processes_admit_exactly_what_is_allowed(tmp_path: Path) -> None:
    """On a busy machine whoever holds the lock may stand still for longer than a gateway would wait."""
    code = (
        "import sys; from pathlib import Path; from gateway.access import limits;"
        "from gateway.store.key_store import Terms; limits.LOCK_SECONDS = 30.0;"
        "limits = limits.Limits(Path(sys.argv[1])); terms = Terms(requests_per_day=1500); input();"
        "print(sum(limits.admit(7, terms)[0].left > 0 for _ in range(1000)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "limits")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sum(int(process.communicate(timeout=150)[0]) for process in processes) == 1500


HOLDER = (
    "import fcntl, os, sys; file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
    "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); input()"
)


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock, and stands still."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "limits")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def told(caplog) -> list[str]:
    """What the limits themselves have logged."""
    return [record.getMessage() for record in caplog.records if record.name == "gateway.access"]


def test_process_that_stands_still_holds_nobody_up(tmp_path: Path, holder, caplog) -> None:
    limits, terms = Limits(tmp_path / "limits"), Terms(requests_per_minute=0)
    with caplog.at_level(logging.ERROR):
        assert admitted(limits, terms, 3) == 3  # what cannot be counted is not limited
    assert len(told(caplog)) == 1


def test_lock_of_a_process_that_dies_is_open(tmp_path: Path, holder) -> None:
    limits, terms = Limits(tmp_path / "limits"), Terms(requests_per_minute=0)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert admitted(limits, terms, 3) == 0


def test_file_that_cannot_be_used_is_told_once_and_limits_nobody(tmp_path: Path, caplog) -> None:
    limits, terms = Limits(tmp_path / "missing" / "limits"), Terms(requests_per_minute=0)
    with caplog.at_level(logging.ERROR):
        assert admitted(limits, terms, 3) == 3
        limits.charge(1, 5)
    assert len(told(caplog)) == 1
    assert str(tmp_path / "missing" / "limits") in caplog.text
