"""One model with real workers, owned by a test instead of a neuron, and clients of it."""

import asyncio
import itertools
import os
from contextlib import asynccontextmanager

from ipc.errors import Code, CortexError
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from ipc.worker_messages import SimulatedSpec
from neuron.config import Memory, ModelSettings, NeuronConfig
from neuron.memory.fit import Fit
from neuron.memory.ledger import Ledger
from neuron.memory.outlook import Prospect
from neuron.memory.room import Room
from neuron.models.managed import ManagedModel
from neuron.processes.backoff import Backoff
from neuron.requests.generation import Generation
from neuron.tenancy.launcher import Launcher
from neuron.text.parser import AnswerParser
from tests.doubles import stands_for
from tests.neuron.doubles import FrontEnd, Pieces, described
from tests.neuron.harness import PATIENCE, children_of, until


class Text(FrontEnd):
    """A front end that says each token as its number."""

    def __init__(self):
        super().__init__(100)

    def detokenizer(self, after=()):
        return Pieces([f"{token} " for token in range(100)])

    def spell(self, token_id):
        return b"%d" % token_id

    def answer_parser(self, thought, request, tools):
        return AnswerParser()


class Client:
    """One request and its replies."""

    def __init__(self, model, key, max_tokens=3, prompt=(1, 2, 3), keep_alive=None):
        self.replies = []
        self.ended = asyncio.get_running_loop().create_future()
        request = Generate(
            id=key,
            model="sim",
            prompt=list(prompt),
            sampling=Sampling(max_tokens=max_tokens),
            stream=True,
            keep_alive=keep_alive,
        )
        self.generation = Generation(
            itertools.chain((key,), itertools.count(1000 * key)), request, self.replies.append, self._end
        )
        self.generation.model = model
        self.generation.prepare(Text(), model.description, model.context_length)
        model.admit(self.generation)

    def _end(self, generation):
        generation.model.leave(generation)
        self.ended.set_result(self.replies[-1])

    async def begun(self):
        """This client, once the worker has begun its request."""
        await until(lambda: self.generation.begun)
        return self

    async def last(self):
        """The reply that ends it."""
        return await asyncio.wait_for(self.ended, PATIENCE)


@stands_for(Room)
class OneRoom(Room):
    """Memory for one model."""

    contested = False

    def __init__(self, *, context_length=1000, refusal=None):
        super().__init__(Memory(), Ledger([]), None, None, print)
        self.fit = Fit(("cpu",), {"cpu": 0}, (0,), 1000, 1000, context_length)
        self.refusal = refusal
        self.spares = []  # of each wish
        self.released = 0
        self.fits = lambda spare: True  # without anybody leaving

    async def take(self, tenant, tell, *, reuse=False, spare=0):
        self.spares.append(spare)
        if self.refusal is not None:
            raise self.refusal
        return self.fit

    async def prospect(self, tenant, spare=0):
        return Prospect(self.fit, now=self.fits(spare))

    def correct(self, model, fit, measured, *, learn): ...

    def release(self, model):
        self.released += 1

    def look(self): ...


@asynccontextmanager
async def owning(
    room=None, *, settings=None, text=Text, config=None, backoff=None, texts_dropped=None, **simulated
):
    """A model; every process of it ends with the block.

    Args:
        texts_dropped: takes the text paths that nobody needs any more.
        simulated: of its `SimulatedSpec`.
    """
    launcher = Launcher(config or NeuronConfig(), cores=1)

    async def read_text(files):
        return text()

    description = described(
        id="sim",
        engine="simulated",
        chat=False,
        tools=False,
        simulated=SimulatedSpec(**{"answer": [7, 8], **simulated}),
    )
    children = children_of(os.getpid())  # those of fixtures that outlive this test
    model = ManagedModel(
        ModelSettings(id="sim", **settings or {}),
        description,
        room or OneRoom(),
        launcher,
        backoff or Backoff(0.01, 0.05),
        lambda *now: None,
        read_text,
        (texts_dropped if texts_dropped is not None else []).append,
    )
    try:
        yield model
    finally:
        model.requests.fail_all(CortexError(Code.SHUTTING_DOWN, "the test ends"))
        await model.close()
        assert children_of(os.getpid()) == children


def run(scenario):
    """All of it, within the time that anything may take."""
    asyncio.run(asyncio.wait_for(scenario, PATIENCE))


async def load(model):
    """Return when it is ready."""
    await asyncio.wait_for(model.load(lambda progress: None), PATIENCE)
