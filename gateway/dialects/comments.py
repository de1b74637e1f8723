"""Comments in server-sent events: they tell whoever looks that we live, and clients skip them."""

from __future__ import annotations

from ipc.messages import Progress


def comment(progress: Progress | None) -> bytes:
    """What is waited for, where there is news of it."""
    if progress is None:
        return b": keep-alive\n\n"
    percent = f" {progress.fraction:.0%}" if progress.fraction is not None else ""
    left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else ""
    text = f": {progress.stage}{percent} {' '.join(progress.message.split())}{left}"
    return text.rstrip().encode() + b"\n\n"
