"""Text processes that are played by coroutines."""

import asyncio

from neuron.preparation.jobs import Outcome
from neuron.preparation.process import TextProcess
from tests.doubles import stands_for


@stands_for(TextProcess)
class Process:
    """Calls what it is given instead of a request, and answers with what that returns."""

    pid = 1

    def __init__(self):
        self.is_there, self.ended = True, False
        self.memory = 100
        self.on_gone = None

    async def ask(self, job, body):
        outcome = await body() if asyncio.iscoroutinefunction(body) else body()
        return outcome if isinstance(outcome, tuple) else (Outcome(), outcome)

    async def end(self):
        self.is_there, self.ended = False, True


class Started(list):
    """Makes processes, and keeps them."""

    def __call__(self):
        self.append(Process())
        return self[-1]
