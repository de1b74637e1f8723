"""Bodies of requests, read where they hold up few.

What a dialect makes of 30 MB takes it up to a second. In a thread the loop has its turns meanwhile, but for
the time in which the bytes are decoded: that keeps the interpreter to itself, 0.03 s for one text of 30 MB,
and 0.2 to 0.4 s for lists of small things. Dialects bound of how many of these anything is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gateway.dialects import RequestContext

T = TypeVar("T")

LARGE = 256 << 10  # bytes, which take some milliseconds
_threads = ThreadPoolExecutor(2, "parsing")  # each takes its turn of the interpreter, and so does the loop


async def parsed(
    parse: Callable[[bytes, RequestContext], Coroutine[Any, Any, T]], data: bytes, context: RequestContext
) -> T:
    """What `parse` makes of a body; CortexError: as it does."""
    if len(data) < LARGE:
        return await parse(data, context)
    waiting = [data]  # until a thread takes it: whoever is cancelled before leaves nothing behind
    try:
        return await asyncio.get_running_loop().run_in_executor(
            _threads, lambda: asyncio.run(parse(waiting.pop(), context))
        )
    finally:
        waiting.clear()
