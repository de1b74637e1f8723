"""Bodies of requests, read where they hold up nobody.

What a dialect makes of 30 MB takes it a second. In a thread that is a second in which the loop has a turn
every few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway.dialects import RequestContext

T = TypeVar("T")

LARGE = 256 << 10  # bytes, which take some milliseconds
_threads = ThreadPoolExecutor(2, "parsing")  # each takes its turn of the interpreter, and so does the loop


async def parsed(
    parse: Callable[[bytes, RequestContext], Awaitable[T]], data: bytes, context: RequestContext
) -> T:
    """What `parse` makes of a body; CortexError: as it does."""
    if len(data) < LARGE:
        return await parse(data, context)

    async def reading() -> T:
        return await parse(data, context)

    return await asyncio.get_running_loop().run_in_executor(_threads, asyncio.run, reading())
