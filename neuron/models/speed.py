"""How fast a model serves, as its requests found it: routers choose hosts by that."""

from __future__ import annotations

from neuron.requests.request import OpenRequest

PREFILL_TOKENS = 128  # of a prompt that says something of how fast prompts are computed
PREFILL_FADES = 0.98  # of what was measured at best, with each that took longer: it may have waited
NEWEST = 0.2  # the weight of one request


class Speed:
    """Of one model.

    Attributes:
        request_seconds: that a request runs, smoothed; 0: none did yet.
        prefill_rate: tokens of prompts a second, lately at best; 0: not measured yet.
    """

    def __init__(self) -> None:
        self.request_seconds = 0.0
        self.prefill_rate = 0.0

    def measure(self, request: OpenRequest) -> None:
        """Take in a request that has finished."""
        known = self.request_seconds or request.seconds_running
        self.request_seconds = known + NEWEST * (request.seconds_running - known)
        tokens, seconds = request.prefill
        if tokens >= PREFILL_TOKENS and seconds > 0:
            self.prefill_rate = max(tokens / seconds, PREFILL_FADES * self.prefill_rate)
