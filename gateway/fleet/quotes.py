"""What neurons say it would take to serve a model: asked of all at once, and remembered for a moment."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from ipc.client import NeuronClient
from ipc.errors import CortexError
from ipc.messages.replies import Quoted
from ipc.messages.requests import Quote

WAIT_SECONDS = 3.0  # for the quotes of one request; who is slower has given none: a load takes longer
LOOKS = 10  # in that time: a process that was late itself reads what came meanwhile, and finds nobody slow
ANSWER_SECONDS = 5.0  # for one neuron, which may have to read a checkpoint's headers from a cold disk
FRESH_SECONDS = 0.5  # a quote is good for so long
REMEMBERED = 1000  # quotes at most: the names of models come from clients


class Asked(Protocol):
    """A neuron, as far as quotes go."""

    name: str
    client: NeuronClient


class Quotes:
    """The quotes of one gateway process. Who asks while a quote is on its way waits for that one."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, str], asyncio.Task[Quoted | CortexError]] = OrderedDict()

    async def ask(self, neurons: Sequence[Asked], model: str) -> dict[str, Quoted | CortexError]:
        """What these neurons say, by name: a quote, or why there is none. Who was too slow is missing, and so
        may be the rest where one has the model or is loading it.

        One that is not heard may be the one that loads it for another process, and a second load elsewhere is
        dearer than some patience.
        """
        tasks = {neuron.name: self._ask_one(neuron, model) for neuron in neurons}
        pending, looks = set(tasks.values()), LOOKS
        while pending and looks and not any(map(_is_coming, tasks.values())):
            seconds = WAIT_SECONDS / LOOKS
            done, pending = await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            looks -= not done
        return {name: task.result() for name, task in tasks.items() if task.done() and not task.cancelled()}

    def forget(self, neuron: str) -> None:
        """That neuron was just given something to load: what it quoted before no longer holds."""
        for key in [key for key, task in self._asked.items() if key[0] == neuron and task.done()]:
            del self._asked[key]

    def close(self) -> None:
        """Ask no more."""
        for task in self._asked.values():
            task.cancel()
        self._asked.clear()

    def _ask_one(self, neuron: Asked, model: str) -> asyncio.Task[Quoted | CortexError]:
        key = neuron.name, model
        if (task := self._asked.get(key)) is None:
            task = self._asked[key] = asyncio.create_task(_quote(neuron, model))
            task.add_done_callback(lambda _: self._age(key, task))
            if len(self._asked) > REMEMBERED:
                self._asked.popitem(last=False)[1].cancel()
        return task

    def _age(self, key: tuple[str, str], task: asyncio.Task[Quoted | CortexError]) -> None:
        def drop() -> None:
            if self._asked.get(key) is task:
                del self._asked[key]

        asyncio.get_running_loop().call_later(FRESH_SECONDS, drop)


def _is_coming(task: asyncio.Task[Quoted | CortexError]) -> bool:
    if not task.done() or task.cancelled():
        return False
    quote = task.result()
    return isinstance(quote, Quoted) and quote.verdict in ("ready", "loading")


async def _quote(neuron: Asked, model: str) -> Quoted | CortexError:
    try:
        return await neuron.client.ask(Quote(id=0, model=model), ANSWER_SECONDS)
    except CortexError as error:
        return error
