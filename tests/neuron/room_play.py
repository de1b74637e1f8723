"""The line for memory on a clock that costs no time: loads, answers and turns take what they say."""

import asyncio
import contextlib
import selectors
import types
from math import inf

from msgspec.structs import replace

import neuron.memory.room
from ipc.errors import CortexError
from ipc.messages.state import Device
from neuron.config import Memory
from neuron.memory.devices import Inventory
from neuron.memory.eviction import Holder, PoolShare, RecentUse
from neuron.memory.ledger import Ledger
from neuron.memory.need import Need, RankNeed
from neuron.memory.room import Room
from neuron.memory.wish import Tenant
from tests.doubles import stands_for
from tests.neuron.doubles import NoStandby

TOTAL = 100  # bytes of the one device
TURN = 5.0
LOAD = 2.0
RESIZE = 0.1


class Instant(selectors.SelectSelector):
    """Waits by moving a clock."""

    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.clock = Instant()
        super().__init__(self.clock)

    def time(self):
        return self.clock.now


def play(scenario, monkeypatch):
    """Run `scenario` on a clock of its own."""
    loop = Loop()
    clock = types.SimpleNamespace(monotonic=loop.time)
    with monkeypatch.context() as patch:
        patch.setattr(neuron.memory.room, "time", clock)
        patch.setattr(neuron.memory.room.asyncio, "to_thread", at_once)
        try:
            return loop.run_until_complete(asyncio.wait_for(scenario, 100_000))
        finally:
            loop.close()


async def at_once(function, *args):
    return function(*args)


@stands_for(Inventory)
class Untouched(Inventory):
    """Devices of which nobody else has anything."""

    def __init__(self, names):
        self.devices = [
            Device(id=name, kind="cuda", name="", memory_total=TOTAL, memory_free=TOTAL) for name in names
        ]
        self.ledger = Ledger(self.devices)

    def refresh(self):
        self.devices = [
            replace(device, memory_free=TOTAL - self.ledger.reserved(device.id)) for device in self.devices
        ]
        return self.devices


@stands_for(Tenant)
class Model:
    """As `ManagedModel` is to a room: it loads, serves, drains and ends."""

    def __init__(self, place, name, size, *, pin=False, priority=100, spare=0):
        self.place, self.id, self.size, self.pin, self.priority = place, name, size, pin, priority
        self.use = RecentUse()
        self.status = "unloaded"
        self.last_used = 0.0
        self.reload_seconds = LOAD
        self.open = self.running = 0  # requests
        self.asking = {}  # those that wait: when they came; inf: they have begun
        self.refused = {}
        self.granted_at = self.ready_at = 0.0
        self.loads = 0
        self.changed = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.task = None
        self.places = []
        self.resizes = []
        self.waits = []
        self.error = None
        self.spare, self.lacking, self.given = spare, 0, 0  # bytes of its pool, which has a page a byte

    def need(self, runtime):
        return Need(
            model=self.id,
            ranks=(RankNeed(weights=self.size),),
            context_length=32,
            max_sequences=1,
            priority=self.priority,
            devices=self.place.devices.get(self.id),
        )

    def holder(self, reserved):
        now = asyncio.get_running_loop().time()
        return Holder(
            self.id,
            {name: size - self.given for name, size in reserved.items()},
            pool=PoolShare(dict.fromkeys(reserved, 1), self.spare, self.lacking) if self.can_change else None,
            coming=dict.fromkeys(reserved, self.given) if self.given else {},
            changes=bool(self.given),
            priority=self.priority,
            last_used=self.last_used,
            pinned=self.pin,
            busy=self.status in ("waiting", "loading") or self.open > 0,
            leaving=self.status == "draining",
            reload_seconds=self.reload_seconds,
            recent_use=self.use.at(now),
            recent_requests=self.use.requests(now),
        )

    @property
    def turn_ends(self):
        return self.ready_at + TURN if self.status in ("ready", "draining") else None

    @property
    def turn_seconds(self):
        return TURN

    @property
    def turn_left(self):
        now = asyncio.get_running_loop().time()
        ready = self.ready_at if self.turn_ends else self.granted_at + self.reload_seconds
        return max(0.0, ready + TURN - now)

    @property
    def waits_since(self):
        return min(self.asking.values(), default=-inf)

    def refuse(self, since, error):
        late = [request for request, arrived in self.asking.items() if arrived <= since]
        if len(late) == len(self.asking):
            return False
        self.refused.update(dict.fromkeys(late, error))
        self.become(self.status)
        return True

    @property
    def seconds_to_leave(self):
        return 1.0

    @property
    def can_change(self):
        return self.status == "ready" and not self.given and bool(self.spare or self.lacking)

    def resize(self, pages):
        assert self.can_change
        assert -self.spare <= pages <= self.lacking
        self.resizes.append(pages)
        self.spare += pages
        self.lacking -= pages
        if pages < 0:
            self.given = -pages
            asyncio.get_running_loop().call_later(RESIZE, self.has_shrunk)

    def has_shrunk(self):
        given, self.given = self.given, 0
        self.place.room.resized(self.id, {"cuda:0": -given})

    def give_way(self):
        if self.status == "ready":
            self.status = "draining"
            self.check()

    def interrupt(self):
        if self.status == "draining":
            self.interrupted.set()
            self.interrupted = asyncio.Event()

    def stay(self):
        if self.status == "draining":
            self.become("ready")

    def become(self, status):
        self.status = status
        self.changed.set()
        self.changed = asyncio.Event()

    def check(self):
        """A model that drains ends with its last request."""
        if self.status == "draining" and not self.running:
            self.become("unloaded")
            self.place.room.release(self.id)

    async def bring_up(self):
        try:
            await self.place.room.take(self, self.places.append)
        except CortexError as error:
            self.error = error
            self.become("unloaded")
            return
        self.status = "loading"
        self.granted_at = asyncio.get_running_loop().time()
        self.loads += 1
        await self.load()
        self.ready_at = asyncio.get_running_loop().time()
        self.become("ready")
        self.place.room.look()

    async def load(self):
        await asyncio.sleep(self.reload_seconds)

    async def serve(self, seconds):
        """One request: how long it waited to begin."""
        loop = asyncio.get_running_loop()
        began = self.last_used = loop.time()
        self.error = None
        self.open += 1
        request = object()
        try:
            await self.ready(request)
            self.waits.append(loop.time() - began)
            while seconds > 1e-6:
                begins = loop.time()
                self.running += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.interrupted.wait(), seconds)
                self.running -= 1
                seconds -= loop.time() - begins
                if seconds > 1e-6:
                    self.check()
                    await self.ready(request, inf)
        finally:
            self.open -= 1
        self.last_used = loop.time()
        self.use.add(self.last_used)
        self.check()
        self.place.room.look()

    async def ready(self, request=None, arrived=None):
        self.asking[request] = asyncio.get_running_loop().time() if arrived is None else arrived
        try:
            while self.status != "ready":
                if self.status == "unloaded":
                    self.become("waiting")
                    self.task = asyncio.create_task(self.bring_up())
                await self.changed.wait()
                if error := self.refused.pop(request, self.error):
                    raise error
        finally:
            del self.asking[request]


class Slow(NoStandby):
    """Processes that take so many seconds to make way."""

    def __init__(self, seconds):
        self.seconds = seconds

    async def make_way(self, amounts, *, reuse):
        await asyncio.sleep(self.seconds)


class Place:
    """A room and the models of a test; `sizes` by name, of TOTAL bytes on each of the `names`."""

    def __init__(
        self,
        sizes,
        *,
        wait_seconds=1000.0,
        pinned=(),
        names=("cuda:0",),
        devices=None,
        priorities=None,
        spares=None,
    ):
        inventory = Untouched(names)
        self.devices = devices or {}
        priorities = priorities or {}
        memory = Memory(wait_seconds=wait_seconds, turn_seconds=TURN)
        self.room = Room(memory, inventory.ledger, inventory, NoStandby(), self.check)
        self.ledger = inventory.ledger
        self.models = {
            name: Model(
                self,
                name,
                size,
                pin=name in pinned,
                priority=priorities.get(name, 100),
                spare=(spares or {}).get(name, 0),
            )
            for name, size in sizes.items()
        }

    def check(self):
        assert all(self.ledger.reserved(device) <= TOTAL for device in self.ledger.devices)

    async def users(self, name, count, seconds, until):
        """So many who ask for one answer after the other."""

        async def user():
            while asyncio.get_running_loop().time() < until:
                await self.models[name].serve(seconds)

        await asyncio.gather(*(user() for _ in range(count)))
