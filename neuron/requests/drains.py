"""What takes no new work for now: this neuron, or some of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ipc.errors import Code, CortexError

ALL = ""  # the neuron, in place of a model


class Drains:
    """By model, who waits until nothing of it is open any more.

    Args:
        is_idle: whether that is so, of a model or of `ALL`.
    """

    def __init__(self, is_idle: Callable[[str], bool]) -> None:
        self._is_idle = is_idle
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._waiting

    def refuse(self, model: str) -> None:
        """DRAINING for new work of a model, or of `ALL`, that is being drained."""
        if model in self._waiting:
            what = f"the model {model}" if model else "this neuron"
            text = f"{what} is being drained here and takes no new work until `cortex resume`"
            raise CortexError(Code.DRAINING, text)

    def begin(self, model: str) -> asyncio.Future[None]:
        """From now on it takes nothing; what is returned ends when nothing is open. Twice is one drain."""
        if model not in self._waiting:
            self._waiting[model] = asyncio.get_running_loop().create_future()
        self.check()
        return self._waiting[model]

    def end(self, model: str) -> None:
        """It takes work again. Who still waits for the end of the drain is told."""
        drained = self._waiting.pop(model, None)
        if drained is not None and not drained.done():
            drained.add_done_callback(asyncio.Future.exception)  # nobody has to wait
            drained.set_exception(CortexError(Code.DRAINING, "the drain was ended by a resume"))

    def check(self) -> None:
        """Something ended."""
        for model, drained in self._waiting.items():
            if not drained.done() and self._is_idle(model):
                drained.set_result(None)
