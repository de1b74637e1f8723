"""What streams of server-sent events have in common, in all dialects."""

from __future__ import annotations

from collections.abc import AsyncIterator

import falcon.asgi

from ipc.messages.replies import Progress

KEEP_ALIVE_SECONDS = 1.0  # no stream is silent for longer


def send(resp: falcon.asgi.Response, stream: AsyncIterator[bytes]) -> None:
    """Answer with a stream."""
    resp.content_type = "text/event-stream; charset=utf-8"
    resp.set_header("Cache-Control", "no-cache")
    resp.set_header("X-Accel-Buffering", "no")  # nginx would hold events back
    resp.stream = stream


def comment(progress: Progress | None) -> bytes:
    """What tells whoever looks that we live, and what is waited for; clients skip it."""
    if progress is None:
        return b": keep-alive\n\n"
    percent = f" {progress.fraction:.0%}" if progress.fraction is not None else ""
    left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else ""
    text = f": {progress.stage}{percent} {' '.join(progress.message.split())}{left}"
    return text.rstrip().encode() + b"\n\n"
