"""CPU threads that follow what is free while a model is served.

Threads of one product wait for the last of them. Beside a program that keeps a core busy, two threads take
longer than one: whichever shares that core holds the other up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

INTERVAL = 0.5  # seconds between two looks: 50 of the kernel's ticks a core
LONGEST = 4 * INTERVAL  # an older look says nothing of now
SPARE = 0.25  # of a core that has to be free beyond half of it before a thread more begins


class Use(NamedTuple):
    """Seconds since the start, all cores that this process may use together."""

    at: float
    busy: float  # by anybody
    own: float  # by this process


def use() -> Use | None:
    """What the kernel says; None where it does not."""
    ours = os.sched_getaffinity(0)
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        ticks = {line[0]: [*map(int, line[1:9])] for line in lines if line[0].startswith("cpu")}
        # user, nice, system, irq, softirq and what other guests of the host took; not idle and iowait
        busy = sum(sum(ticks[f"cpu{core}"]) - sum(ticks[f"cpu{core}"][3:5]) for core in ours)
    except (OSError, KeyError, ValueError):
        return None
    return Use(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time())


class Threads:
    """How many threads compute: no more than there are cores that nobody else uses.

    Args:
        most: when all is quiet.
        cores: that this process may use.
        look: at what is used.
        change: called with a new number.
    """

    def __init__(
        self,
        most: int,
        cores: int | None = None,
        look: Callable[[], Use | None] = use,
        change: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self.most = self.count = most
        self._cores = cores or len(os.sched_getaffinity(0))
        self._look, self._change = look, change
        self._last: Use | None = None
        self._due = 0.0

    def follow(self) -> None:
        """Called before each step; looks up from time to time, and changes the number where it has to."""
        if self.most == 1 or time.monotonic() < self._due:
            return
        last, self._last = self._last, self._look()
        self._due = time.monotonic() + INTERVAL
        if last is None or self._last is None or self._last.at - last.at > LONGEST:
            return
        count = self.wanted(last, self._last)
        if count != self.count:
            self.count = count
            self._change(count)

    def wanted(self, last: Use, now: Use) -> int:
        """The number of threads for what was used between two looks."""
        others = (now.busy - last.busy - (now.own - last.own)) / (now.at - last.at)
        free = self._cores - max(0.0, others)
        more = int(free + 0.5 - SPARE)  # so that a number in between does not go back and forth
        fewer = int(free + 0.5)
        return max(1, min(self.most, max(more, min(fewer, self.count))))
