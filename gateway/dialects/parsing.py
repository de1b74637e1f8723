"""Bodies of requests, read where they hold up few.

What a dialect makes of a body of megabytes takes it a tenth of a second. In a thread the loop has its turns
meanwhile, but for the time in which the bytes are decoded, which keeps the interpreter to itself. Where that
is long another process does it all (`gateway.http.aside`). Dialects bound how much anything is made of.
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
