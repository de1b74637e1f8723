"""Which ranks make no progress, from their heartbeat page and the command ring."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ipc.heartbeat import HeartbeatPage
from ipc.ring import Ring
from neuron.processes.spawn import Rank


class Watchdog:
    """Watches the ranks of one group while requests are open.

    Args:
        deadline: seconds that a rank may make no progress then.
    """

    def __init__(
        self, ranks: Sequence[Rank], heartbeat: HeartbeatPage, commands: Ring, deadline: float
    ) -> None:
        self._ranks = ranks
        self._heartbeat = heartbeat
        self._commands = commands
        self._deadline = deadline
        self._busy_since = 0.0  # when the oldest of a chain of open requests came, monotonic
        # By rank: its step, for rank 0 with its unread command bytes, and when that changed last.
        self._progress = [((-1, -1), 0.0)] * len(ranks)

    def begin(self) -> None:
        """There was no open request, and now there is one."""
        self._busy_since = time.monotonic()

    def look(self) -> str:
        """What every rank does, when one of them is over its deadline; else empty."""
        now = time.monotonic()
        late = False
        for rank in self._ranks:
            progress = (
                self._heartbeat.read(rank.index).step,
                self._commands.unread if rank.index == 0 else 0,
            )
            before, since = self._progress[rank.index]
            if progress != before:
                self._progress[rank.index] = (progress, now)
            elif now - max(since, self._busy_since) >= self._deadline:
                late = True
        return "; ".join(map(self._doing, self._ranks)) if late else ""

    def _doing(self, rank: Rank) -> str:
        """What `rank` says that it does, and what the kernel says: T is stopped, D is stuck in a driver."""
        beat = self._heartbeat.read(rank.index)
        with open(f"/proc/{rank.pid}/stat", "rb") as stat:
            state = stat.read().rpartition(b")")[2].split()[0].decode()
        return f"{rank} is {beat.state} at step {beat.step}, process state {state}"
