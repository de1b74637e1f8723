"""Two real models in memory that one of them had planned for itself."""

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from ipc.messages.state import Device
from neuron.config import Memory, ModelSettings, NeuronConfig
from neuron.description import describe
from neuron.memory.devices import Inventory
from neuron.memory.ledger import Ledger
from neuron.memory.room import Room
from neuron.models.managed import ManagedModel
from neuron.processes.backoff import Backoff
from neuron.tenancy.launcher import Launcher
from tests.demo import DEMO
from tests.doubles import stands_for
from tests.neuron.doubles import NoStandby
from tests.neuron.harness import PATIENCE, children_of, until

CONFIG = NeuronConfig(memory=Memory(resize_pools=True))
TOTAL = 2 << 30
LEFT = 64 << 20  # bytes: less than a process takes
NEAR = 128  # pages, 12 MiB: one process holds a little more than another


@stands_for(Inventory)
class Host(Inventory):
    """A CPU with so much memory."""

    def __init__(self):
        self.devices = [Device(id="cpu", kind="cpu", name="", memory_total=TOTAL, memory_free=TOTAL)]
        self.ledger = Ledger(self.devices)

    def refresh(self):
        free = TOTAL - self.ledger.reserved("cpu")
        self.devices = [msgspec.structs.replace(device, memory_free=free) for device in self.devices]
        return self.devices


async def no_text(files):
    return None


@asynccontextmanager
async def model_of(room, name):
    settings = ModelSettings(id=name, path=str(DEMO), max_sequences=64)
    description, launcher = describe(settings, DEMO), Launcher(CONFIG, cores=1)
    backoff = Backoff(0.01, 0.05)
    told, forget = (lambda *now: None), (lambda text: None)
    model = ManagedModel(settings, description, room, launcher, backoff, told, no_text, forget)
    try:
        yield model
    finally:
        await model.close()


def test_a_model_that_took_what_there_was_makes_room_for_another_and_has_it_back():
    async def scenario():
        host, children = Host(), children_of(os.getpid())
        room = Room(CONFIG.memory, host.ledger, host, NoStandby(), lambda: None)
        async with AsyncExitStack() as models:
            first = await models.enter_async_context(model_of(room, "first"))
            await first.load(lambda progress: None)
            before = first.state()
            host.ledger.reserve("others", {"cpu": host.ledger.free("cpu") - LEFT})
            host.ledger.correct("others", "cpu", host.ledger.held_by("others")["cpu"])

            second = await models.enter_async_context(model_of(room, "second"))
            await second.load(lambda progress: None)
            shrunk = first.state()
            assert (first.status, shrunk.epoch, second.status) == ("ready", 1, "ready")
            assert shrunk.context_length == before.context_length == second.context_length
            assert 64 <= shrunk.pages_total < before.pages_total - NEAR
            given = (before.pages_total - shrunk.pages_total) * 98_304
            assert before.bytes_reserved - shrunk.bytes_reserved == given
            assert before.bytes_measured - shrunk.bytes_measured == given
            assert host.ledger.reserved("cpu") <= TOTAL

            os.kill(first.ranks()[0].pid, 9)  # what follows has the memory that is left to it, and no more
            await until(lambda: first.state().epoch == 2 and first.status == "ready")
            assert first.state().pages_total <= shrunk.pages_total + NEAR

            await second.unload()
            await until(lambda: first.state().pages_total > shrunk.pages_total + NEAR)
            assert host.ledger.reserved("cpu") <= TOTAL
            assert first.state().epoch == 2

            await second.load(lambda progress: None)  # which takes what it had no room for, once that is free
            late = second.state().pages_total
            await first.unload()
            await until(lambda: second.state().pages_total > late + NEAR)
            assert second.state().epoch == 2
        await room.close()
        assert children_of(os.getpid()) == children

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
