"""How much of a prompt may ride along in a step while others wait for their next token.

A step with a large chunk of a prompt in it makes every running stream wait. How long a token of a prompt
takes differs by a factor of a thousand between devices, and grows with the context before it, so it is
measured rather than configured: steps of decode alone say what a stream is used to, mixed steps say what a
token of a prompt costs on top, and the next chunk is as large as keeps a step within `STRETCH` of that.
What it takes to see an image is divided and measured in the same way.
Streams get slower as they get longer, so while a long prompt is computed some steps go without it.
"""

from __future__ import annotations

import statistics
from collections import deque

STRETCH = 2.0  # of the time of a step without a prompt; below the promised 3, because steps vary
FIRST_CHUNK = 32  # tokens, before anything was measured
SMALLEST_CHUNK = 4  # where reading a long context takes too long by itself, a prompt still gets on
FIRST_WORK = 1 << 28  # multiplications for an image, before anything was measured
GROWTH = 2.0  # from one chunk to the next at most: what a token costs may have been an accident
SMOOTHING = 0.5  # weight of the newest measurement of a prompt's token
MEMORY = 7  # steps of decode alone whose median counts
MIXED = 32  # steps with a prompt in a row, before one without


class Cost:
    """What one of something takes that rides along, and how many of it may next.

    Args:
        first: of them, before anything was measured.
        least: so many where even that takes too long.
    """

    def __init__(self, first: int, least: int) -> None:
        self._first, self._least = first, least
        self._seconds = 0.0  # of one; 0: unknown
        self._last = 0  # how many rode last, where anybody waited

    def observe(self, count: int, seconds: float, alone: float, beside: bool) -> None:
        """A step had so many of it, and would have taken `alone` without them."""
        self._last = count if beside else 0
        cost = max(seconds - alone, 0.1 * seconds) / count
        if self._seconds:
            cost = SMOOTHING * cost + (1 - SMOOTHING) * self._seconds
        self._seconds = cost

    def count(self, spare: float) -> int:
        """How many may ride in so many seconds."""
        if not self._seconds:
            return self._first
        largest = max(self._first, int(GROWTH * self._last))
        return int(min(max(self._least, spare / self._seconds), largest))


class Pace:
    """Measures steps, and says how much may ride in the next one. No clock is read here.

    Args:
        max_tokens: of a step: what a chunk may be when nobody waits for it, or when nothing is known.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._decode: deque[float] = deque(maxlen=MEMORY)  # seconds of the last steps without a prompt
        self._median: float | None = None  # of these, once anybody asked for it
        self._tokens = Cost(FIRST_CHUNK, SMALLEST_CHUNK)
        self._work = Cost(FIRST_WORK, 1)
        self._mixed = 0  # steps in a row

    def observe(self, decode_tokens: int, prompt_tokens: int, seconds: float, looked: int = 0) -> None:
        """Take in what a step had in it and how long it took."""
        self._mixed = self._mixed + 1 if decode_tokens and (prompt_tokens or looked) else 0
        if not prompt_tokens and not looked:
            self._decode.append(seconds)
            self._median = None
            return
        if prompt_tokens and looked:
            return  # who knows which of them took how much
        alone = self._alone if decode_tokens and self._decode else 0.0
        cost = self._tokens if prompt_tokens else self._work
        cost.observe(prompt_tokens or looked, seconds, alone, bool(decode_tokens))

    def chunk(self) -> int:
        """Tokens of prompts that the next step may take beside tokens of decode; now and then none."""
        if self._mixed >= MIXED:
            return 0
        if not self._decode:
            return self._max_tokens
        return min(self._tokens.count(self._spare), self._max_tokens)

    def work(self) -> int | None:
        """Multiplications that an image may take in the next step instead. None: nothing is known yet."""
        if self._mixed >= MIXED:
            return 0
        return self._work.count(self._spare) if self._decode else None

    @property
    def _alone(self) -> float:
        """Seconds of a step without a prompt, when there was one."""
        if self._median is None:
            self._median = statistics.median(self._decode)
        return self._median

    @property
    def _spare(self) -> float:
        """Seconds that a step may take longer than one without a prompt."""
        return (STRETCH - 1) * self._alone
