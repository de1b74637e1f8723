"""How much of a prompt may ride along in a step while others wait for their next token.

A step with a large chunk of a prompt in it makes every running stream wait. How long a token of a prompt
takes differs by a factor of a thousand between devices, and grows with the context before it, so it is
measured rather than configured: steps of decode alone say what a stream is used to, mixed steps say what a
token of a prompt costs on top, and the next chunk is as large as keeps a step within `STRETCH` of that.
Streams get slower as they get longer, so while a long prompt is computed some steps go without it.
"""

from __future__ import annotations

import statistics
from collections import deque

STRETCH = 2.0  # of the time of a step without a prompt; below the promised 3, because steps vary
FIRST_CHUNK = 32  # tokens, before anything was measured
SMALLEST_CHUNK = 4  # where reading a long context takes too long by itself, a prompt still gets on
GROWTH = 2.0  # from one chunk to the next at most: what a token costs may have been an accident
SMOOTHING = 0.5  # weight of the newest measurement of a prompt's token
MEMORY = 7  # steps of decode alone whose median counts
MIXED = 32  # steps with a prompt in a row, before one without


class Pace:
    """Measures steps, and says how large the next chunk may be. No clock is read here.

    Args:
        max_tokens: of a step: what a chunk may be when nobody waits for it, or when nothing is known.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._decode: deque[float] = deque(maxlen=MEMORY)  # seconds of the last steps without a prompt
        self._token_seconds = 0.0  # of a prompt's token in a mixed step; 0: unknown
        self._last_chunk = 0
        self._mixed = 0  # steps in a row

    def observe(self, decode_tokens: int, prompt_tokens: int, seconds: float) -> None:
        """Take in what a step had in it and how long it took."""
        self._mixed = self._mixed + 1 if decode_tokens and prompt_tokens else 0
        if not prompt_tokens:
            self._decode.append(seconds)
            return
        self._last_chunk = prompt_tokens if decode_tokens else 0
        alone = statistics.median(self._decode) if decode_tokens and self._decode else 0.0
        cost = max(seconds - alone, 0.1 * seconds) / prompt_tokens
        if self._token_seconds:
            cost = SMOOTHING * cost + (1 - SMOOTHING) * self._token_seconds
        self._token_seconds = cost

    def chunk(self) -> int:
        """Tokens of prompts that the next step may take beside tokens of decode; now and then none."""
        if self._mixed >= MIXED:
            return 0
        if not self._decode:
            return self._max_tokens
        if not self._token_seconds:
            return min(FIRST_CHUNK, self._max_tokens)
        spare = (STRETCH - 1) * statistics.median(self._decode)
        largest = max(FIRST_CHUNK, int(GROWTH * self._last_chunk))
        wanted = max(SMALLEST_CHUNK, int(spare / self._token_seconds))
        return min(wanted, largest, self._max_tokens)
