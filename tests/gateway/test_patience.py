"""What a request is told that has waited for too long."""

from __future__ import annotations

from gateway.fleet.patience import waited_too_long
from ipc.errors import Code
from ipc.messages.state import ModelState


def test_who_waits_for_files_from_a_hub_is_told_how_much_is_to_come() -> None:
    state = ModelState(id="m", status="loading", progress=0.25, seconds_left=40.0, bytes_to_pull=3 << 30)
    error = waited_too_long("m", state, None, 90.0)
    assert (error.code, error.retry_after) == (Code.MODEL_LOADING, 40.0)
    assert error.details["bytes_to_pull"] == 3 << 30
    assert "(loading 25%, 40 s left, 3,072 MiB to come from a hub)" in error.message
