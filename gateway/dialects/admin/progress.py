"""What takes long is answered by lines of JSON: news as it comes, and in the last one how it ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import falcon.asgi
import msgspec

from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS
from ipc.call import Call
from ipc.errors import CortexError
from ipc.messages.replies import Cancelled, Done, Failed, Progress


def send(resp: falcon.asgi.Response, call: Call, neuron: str) -> None:
    """Answer with the progress of `call`, which goes on at that neuron though its client leaves."""
    send_lines(resp, _lines(call, neuron))


def send_lines(resp: falcon.asgi.Response, lines: AsyncIterator[bytes]) -> None:
    """Answer with these lines as they come."""
    resp.content_type = "application/x-ndjson"
    resp.set_header("Cache-Control", "no-cache")
    resp.set_header("X-Accel-Buffering", "no")  # nginx would hold lines back
    resp.stream = lines


async def _lines(call: Call, neuron: str) -> AsyncIterator[bytes]:
    yield line({"neuron": neuron})
    while True:
        replies = await call.take(KEEP_ALIVE_SECONDS)
        if not replies:
            if call.closed:
                return
            yield b"\n"  # we live
        for reply in replies:
            if isinstance(reply, Progress):
                yield line(
                    {
                        "stage": reply.stage,
                        "message": reply.message,
                        "fraction": reply.fraction,
                        "seconds_left": reply.seconds_left,
                        "position": reply.position,
                    }
                )
            elif isinstance(reply, Done):
                yield line({"done": True})
            elif isinstance(reply, Failed):
                yield line({"error": error(reply.error())})
            elif isinstance(reply, Cancelled):
                yield line({"error": {"code": "cancelled", "message": "the neuron gave it up"}})


def line(value: dict[str, Any]) -> bytes:
    """One line of such an answer."""
    return msgspec.json.encode(value) + b"\n"


def error(failure: CortexError) -> dict[str, Any]:
    """A failure, as a member of one."""
    return {"code": failure.code, "message": failure.message, "details": failure.details}
