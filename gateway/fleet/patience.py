"""What a request that is not streamed is told when it has waited for longer than such a client should."""

from __future__ import annotations

from typing import Any

from ipc.errors import Code, CortexError
from ipc.messages.replies import Progress
from ipc.messages.state import ModelState

LONGEST_WAIT = 600.0  # seconds after which it may be told to try again, whatever a neuron says

# While a model is in one of these, all requests to it wait: also what had begun, for the next worker.
NOT_THERE = frozenset(("unloaded", "waiting", "loading", "restarting", "unloading"))


def waited_too_long(
    model: str, state: ModelState | None, waits_for: Progress | None, seconds: float
) -> CortexError | None:
    """Why it does not go on yet, and when to try again; None: it does.

    Args:
        model: as the client calls it.
        state: of the model, where the request is.
        waits_for: what the neuron said last that it waits for; None: for nothing.
        seconds: that it has waited.
    """
    if state is not None and state.status in NOT_THERE:
        return _still_loading(model, state, seconds)
    return _still_queued(model, waits_for, seconds) if waits_for is not None else None


def _still_loading(model: str, state: ModelState, seconds: float) -> CortexError:
    details: dict[str, Any] = {"status": state.status}
    so_far = ""
    if state.progress is not None:
        details["progress"] = round(state.progress, 3)
        so_far += f" {state.progress:.0%}"
    if state.seconds_left is not None:
        details["seconds_left"] = round(state.seconds_left, 1)
        so_far += f", {state.seconds_left:.0f} s left"
    if state.bytes_to_pull:
        details["bytes_to_pull"] = state.bytes_to_pull
        so_far += f", {state.bytes_to_pull >> 20:,} MiB to come from a hub"
    return CortexError(
        Code.MODEL_LOADING,
        f"the model {model!r} is not loaded yet ({state.status}{so_far}) after {seconds:g} s; its load goes "
        "on: try again, or stream, which waits",
        retry_after=state.seconds_left,
        details=details,
    )


def _still_queued(model: str, waits_for: Progress, seconds: float) -> CortexError:
    details: dict[str, Any] = {}
    so_far, wait = waits_for.message, waits_for.seconds_left
    for name in ("position", "waiting"):
        if (count := getattr(waits_for, name)) is not None:
            details[name] = count
    if wait is not None:
        wait = min(max(wait, 1.0), LONGEST_WAIT)
        details["seconds_left"] = round(wait, 1)
        so_far += f", about {wait:.0f} s left"
    return CortexError(
        Code.QUEUE_TIMEOUT,
        f"the request to {model!r} has not begun after {seconds:g} s ({so_far}); try again, or stream, which "
        "waits longer",
        retry_after=wait,
        details=details,
    )
