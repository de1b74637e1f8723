"""A line of the log for each request that ended; of all that ended well within a moment, in one go."""

from __future__ import annotations

import logging
from typing import NamedTuple

from ipc.logs import Gathered
from ipc.messages.answers import Usage
from neuron.trace import word

log = logging.getLogger("neuron.requests.ended")


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
        self._lines = Gathered(log)

    def add(self, ended: Ended) -> None:
        """One has ended. If it did not end well, its line stands beside what else is said of that."""
        self._lines.info(
            "request %s id=%d trace=%s model=%s prompt_tokens=%d completion_tokens=%d seconds=%.3f reason=%s",
            ended.outcome,
            ended.key,
            word(ended.trace),
            word(ended.model),
            ended.usage.prompt_tokens,
            ended.usage.completion_tokens,
            ended.seconds,
            ended.reason,
        )
        if ended.outcome != "finished":
            self.write()

    def write(self) -> None:
        """Write what there is."""
        self._lines.write()
