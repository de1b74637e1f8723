"""Bodies of requests that take long to read."""

import asyncio
import threading

import pytest

from gateway.dialects import RequestContext
from gateway.http.parsing import LARGE, parsed
from ipc.errors import Code, CortexError

PATIENCE = 60.0  # seconds


def test_a_large_body_is_read_while_others_are():
    other = threading.Event()

    async def parse(data, context):
        if len(data) < LARGE:
            other.set()
        else:
            assert other.wait(PATIENCE)
        return context.request_id, len(data)

    async def both():
        return await asyncio.gather(
            parsed(parse, bytes(LARGE), RequestContext("large")),
            parsed(parse, b"{}", RequestContext("small")),
        )

    assert asyncio.run(both()) == [("large", LARGE), ("small", 2)]


def test_what_is_wrong_with_a_large_body_is_said():
    async def parse(data, context):
        await asyncio.sleep(0)  # it may wait
        raise CortexError(Code.BAD_REQUEST, "no")

    with pytest.raises(CortexError, match="no"):
        asyncio.run(parsed(parse, bytes(LARGE), RequestContext("r")))
