"""A line of the log for each request that ended; of all that ended well within a moment, in one go.

A line by itself is a fifth of what an answer costs, most of it because the processor has forgotten the code
for it since the last one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from ipc.messages.answers import Usage
from neuron.trace import word

log = logging.getLogger("neuron.requests.ended")

GATHER_SECONDS = 0.1


class Ended(NamedTuple):
    """What a line tells."""

    outcome: str  # "finished", "cancelled" or "failed"
    key: int  # the neuron's number for it
    trace: str
    model: str
    usage: Usage
    seconds: float  # from its arrival
    reason: str


class EndedLog:
    """Writes the lines in the order in which the requests ended."""

    def __init__(self) -> None:
        self._unwritten: list[Ended] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, ended: Ended) -> None:
        """One has ended. If it did not end well, its line stands beside what else is said of that."""
        self._unwritten.append(ended)
        if ended.outcome != "finished":
            self.write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self.write)

    def write(self) -> None:
        """Write what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unwritten, self._unwritten = self._unwritten, []
        for outcome, key, trace, model, usage, seconds, reason in unwritten:
            log.info(
                "request %s id=%d trace=%s model=%s prompt_tokens=%d completion_tokens=%d seconds=%.3f "
                "reason=%s",
                outcome,
                key,
                word(trace),
                word(model),
                usage.prompt_tokens,
                usage.completion_tokens,
                seconds,
                reason,
            )
