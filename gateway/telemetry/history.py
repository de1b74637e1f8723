"""What all processes of a gateway did lately: their counts, once a minute, for the last hour.

Each process keeps its own notes of what all of them counted together, so whichever is asked can tell.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections import deque
from contextlib import suppress
from glob import glob

from msgspec import Struct
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.telemetry.metrics_directory import VARIABLE

SECONDS, POINTS = 60.0, 60

_COUNTERS = {
    "cortex_requests_total": "requests",
    "cortex_request_errors_total": "errors",
    "cortex_prompt_tokens_total": "prompt_tokens",
    "cortex_completion_tokens_total": "completion_tokens",
}
_FIRST_TOKEN = "cortex_time_to_first_token_seconds_bucket"


class Counts(Struct, kw_only=True):
    """The sums over all models and neurons, since the gateway started.

    Attributes:
        time: at which they were these, in Unix time.
        first_tokens: requests by their time to first token: those of at most so many seconds, by these.
    """

    time: float
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_tokens: dict[str, int]


def counted() -> Counts:
    """The counts as they are now, read from the files of all processes."""
    found = Counts(time=time.time(), first_tokens={})
    folder = os.environ.get(VARIABLE)
    files = [file for kind in ("counter", "histogram") for file in glob(f"{folder}/{kind}_*.db")]
    for family in MultiProcessCollector.merge(files, accumulate=True) if folder else ():
        for sample in family.samples:
            if (name := _COUNTERS.get(sample.name)) is not None:
                setattr(found, name, getattr(found, name) + int(sample.value))
            elif sample.name == _FIRST_TOKEN:
                bound = sample.labels["le"]
                found.first_tokens[bound] = found.first_tokens.get(bound, 0) + int(sample.value)
    return found


class History:
    """The notes of one process."""

    def __init__(self) -> None:
        self._points: deque[Counts] = deque(maxlen=POINTS)
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def points(self) -> list[Counts]:
        """The oldest first, and as the last one how it is now."""
        return [*self._points, await asyncio.to_thread(counted)]

    async def _keep(self) -> None:
        while True:
            with suppress(OSError, struct.error):  # a process makes its file at this moment
                self._points.append(await asyncio.to_thread(counted))
            await asyncio.sleep(SECONDS)
