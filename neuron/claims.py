"""Where models are to be loaded, as gateways agree on it here."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

SECONDS = 2.0  # that a claim holds: by then all gateways see that the model is on its way
MOST = 1000  # of them, at a time


class Claims:
    """Who asks first decides, for all that ask within a moment, whichever gateway and process they are of.

    Neurons are strings that tell them apart; it need not be one of them that is asked.

    Args:
        now: the clock, monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._claimed: OrderedDict[str, tuple[str, float]] = OrderedDict()  # by model: neuron, until when

    def settle(self, model: str, equals: Sequence[str], others: Sequence[str]) -> str:
        """The neuron at which that model is to be loaded.

        Args:
            equals: neurons that would do best, one at least; where nobody has decided it is the first of them
                at which no other model is to be loaded, else the first one.
            others: neurons that would do as well, if it was decided so.
        """
        now = self._now()
        while self._claimed and next(iter(self._claimed.values()))[1] <= now:
            self._claimed.popitem(last=False)
        claimed, _ = self._claimed.get(model, ("", now))
        if claimed in equals or claimed in others:
            return claimed
        taken = {neuron for neuron, _ in self._claimed.values()}
        claimed = next((neuron for neuron in equals if neuron not in taken), equals[0])
        self._claimed.pop(model, None)
        self._claimed[model] = claimed, now + SECONDS
        if len(self._claimed) > MOST:
            self._claimed.popitem(last=False)
        return claimed
