"""What takes long is answered by lines of JSON: news as it comes, and in the last one how it ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import falcon.asgi
import msgspec

from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS
from ipc.client import Call
from ipc.errors import CortexError
from ipc.messages import Cancelled, Done, Failed, Progress


def send(resp: falcon.asgi.Response, call: Call, neuron: str) -> None:
    """Answer with the progress of `call`, which goes on at that neuron though its client leaves."""
    resp.content_type = "application/x-ndjson"
    resp.set_header("Cache-Control", "no-cache")
    resp.set_header("X-Accel-Buffering", "no")  # nginx would hold lines back
    resp.stream = _lines(call, neuron)


async def _lines(call: Call, neuron: str) -> AsyncIterator[bytes]:
    yield _line({"neuron": neuron})
    while True:
        replies = await call.take(KEEP_ALIVE_SECONDS)
        if not replies:
            if call.closed:
                return
            yield b"\n"  # we live
        for reply in replies:
            if isinstance(reply, Progress):
                yield _line(
                    {
                        "stage": reply.stage,
                        "message": reply.message,
                        "fraction": reply.fraction,
                        "seconds_left": reply.seconds_left,
                        "position": reply.position,
                    }
                )
            elif isinstance(reply, Done):
                yield _line({"done": True})
            elif isinstance(reply, Failed):
                yield _line({"error": _error(reply.error())})
            elif isinstance(reply, Cancelled):
                yield _line({"error": {"code": "cancelled", "message": "the neuron gave it up"}})


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _error(error: CortexError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "details": error.details}
