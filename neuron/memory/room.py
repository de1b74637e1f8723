"""Memory for models: wishes in their order, who leaves for whom, and what it would take.

A wish is granted as soon as its memory is free. Wishes are looked at as they came, but for one whose load is
so much shorter that it would be over before: what loads in ten seconds lets pass what loads in two and comes
within eight. So most waits are shorter, and nobody waits for who comes later than its own load takes.

A wish stands for as long as a request waits for its model, each of which has its own bound. Whoever is
refused is told to come back a while before the turn of the model, which keeps its place until then: where
turns come later than anybody waits, each model has its own all the same.

Idle models leave for a wish at once. A busy one is asked to leave when it has had its turn: it takes nothing
new, finishes what runs, and ends; whoever asks for it meanwhile makes a wish of its own. What takes so long
that the wish would be refused is interrupted, and goes on when its model is back: a wish for answers that
have begun waits for its turn, however many come before. So a model under steady traffic holds nobody up for
longer than its turn and a bound, and those that fit only one at a time take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages.requests import Eviction
from ipc.messages.state import Device
from ipc.worker_messages import MemoryUse
from neuron.config import Memory
from neuron.memory.devices import Inventory
from neuron.memory.eviction import Holder, explain, must_wait, order, residency
from neuron.memory.fit import Fit, candidates_for, pool_share
from neuron.memory.ledger import Ledger
from neuron.memory.need import Need, rates_of
from neuron.memory.outlook import Outlook, Prospect
from neuron.memory.parking import Parking
from neuron.memory.step_bytes import UNMEASURED_BYTES
from neuron.memory.text_memory import NAME, TextMemory
from neuron.memory.wish import Place, Tenant, Wish

log = logging.getLogger("neuron.memory.room")

LOOK_SECONDS = 0.5  # between looks while somebody waits: other programs come and go without a word
GROWTH = 1 / 8  # of what a pool lacks, that it takes at least: less is not worth a pause between two steps
FINISHING_SHARE = 3 / 4  # of the time that a wish may wait, after which a holder is interrupted
PASSED_SHARE = 1 / 4  # of the time that a wish may wait, in which others may pass it
SOONEST_SECONDS = 5.0  # after which one that was refused may come again,
RETURN_SHARE = 1 / 2  # and of the time that it may wait, so much before its turn
SETTLE_SECONDS = 2.0  # until a driver has given back what a process held that ended, at most


class _Ended(NamedTuple):
    """A model that has just ended: a driver may say for a while that its memory is taken."""

    until: float  # monotonic
    held: dict[str, int]  # bytes by device
    others: dict[str, int]  # what other programs held then


class Lender(Protocol):
    """Processes that wait for a model, and hold memory that they give up for one (`processes.standby`)."""

    def booked(self, device: str) -> int:
        """Bytes on `device` that a model may have, because the process there becomes its own or makes way."""
        ...

    async def make_way(self, amounts: Mapping[str, int], *, reuse: bool) -> None:
        """See that `amounts` (bytes by device) can be booked; with `reuse` the model takes the processes."""
        ...

    async def measure(self, device: str) -> int | None:
        """Bytes that a process holds on `device` before it has a model; None: no process can be had."""
        ...

    def settle(self) -> None:
        """Book every process that is not in the ledger."""
        ...

    def tend(self) -> None:
        """See soon that every device has its process."""
        ...


class Room:
    """Owns the wishes for memory, and the ledger that says who holds it.

    Args:
        settings: how long a wish waits.
        ledger: bookings.
        inventory: the devices.
        lender: processes that wait, warm.
        changed: called when a device's figures are not what they were.
        parking: weights that make way for a model; None: there are none.
        texts: the memory of text processes; None: there are none.

    Attributes:
        eviction: who leaves first, as the gateway wants it.
    """

    def __init__(
        self,
        settings: Memory,
        ledger: Ledger,
        inventory: Inventory,
        lender: Lender,
        changed: Callable[[], None],
        parking: Parking | None = None,
        texts: TextMemory | None = None,
    ) -> None:
        self.eviction = Eviction()
        self._settings = settings
        self._ledger = ledger
        self._inventory = inventory
        self._lender = lender
        self._changed = changed
        self._parking = parking or Parking(0, ledger, lambda: (0, 0))
        self._texts = texts
        self._tenants: dict[str, Tenant] = {}  # who hold memory
        self._wishes: dict[str, Wish] = {}  # by model
        # Since when those wait that left the line, by model, and until when that counts if they come back; of
        # who had its memory it counts for a load that was short of it.
        self._left: dict[str, tuple[float, float]] = {}
        self._asked: set[str] = set()  # tenants that were asked to leave
        self._ended: list[_Ended] = []
        self._runtime = dict(UNMEASURED_BYTES)  # of a process without a model, by kind of device
        self._measured = False  # whether a process on a CPU said what that is
        self._closed = False
        self._again = False  # something changed since the last look began
        self._looking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- taking and giving back -------------------------------------------------------------------------

    async def take(
        self, tenant: Tenant, tell: Callable[[Place], None], *, reuse: bool = False, spare: int = 0
    ) -> Fit:
        """Wait until what `tenant` needs is booked for it. A call that is cancelled withdraws the wish.

        Args:
            tell: told where the wish stands, now and when that changes, while it has to wait.
            reuse: the model takes over the waiting processes on its devices.
            spare: bytes on each rank over what is planned: a load found that it needs more. One idle model
                more than it would take leaves then, for what was booked was not there.

        Raises:
            CortexError: MODEL_TOO_LARGE, at once; INSUFFICIENT_MEMORY, at once where nobody who could leave
                makes it fit, else after `wait_seconds`, unless requests wait for it that came later, or whose
                answers have begun.
        """
        if reuse:
            await self._measure_process(tenant)
        granted = asyncio.get_running_loop().create_future()
        now, longest = time.monotonic(), self._settings.wait_seconds
        since, until = self._left.pop(tenant.id, (now, now))
        if until <= now and not spare:
            since = now
        turn = since + min(tenant.reload_seconds, PASSED_SHARE * longest)
        patience = since + FINISHING_SHARE * longest
        wish = self._wishes[tenant.id] = Wish(tenant, reuse, spare, tell, now, since, patience, turn, granted)
        if spare:
            wish.leaving = self._one_more(self._need(wish.tenant, wish.spare))
        self.look()
        try:
            fit = await granted
        except BaseException:
            self._left[tenant.id] = since, max(wish.keeps, time.monotonic() + longest)
            raise
        else:
            self._left[tenant.id] = since, 0.0
            return fit
        finally:
            self._wishes.pop(tenant.id, None)
            self.look()

    async def _measure_process(self, tenant: Tenant) -> None:
        """Before the first plan for a CPU: have the process that the model will take say what it holds."""
        devices = tenant.need(self._runtime).devices or self._ledger.devices
        if self._measured or devices[0] != "cpu":
            return
        if (size := await self._lender.measure("cpu")) is not None:
            self._runtime["cpu"], self._measured = size, True

    def release(self, model: str) -> None:
        """End the booking of `model`, if there is one."""
        if self._tenants.pop(model, None) is not None:
            others = {name: self._ledger.foreign(name) for name in self._ledger.devices}
            until = time.monotonic() + SETTLE_SECONDS
            self._ended.append(_Ended(until, self._ledger.held_by(model), others))
        self._asked.discard(model)
        self._ledger.release(model)
        self._lender.settle()
        self._lender.tend()
        self.look()

    def correct(self, model: str, fit: Fit, measured: Sequence[MemoryUse], *, learn: bool) -> None:
        """Replace what was promised by what each rank measured; `learn` what a process takes by itself."""
        if learn:
            kind = fit.devices[0].partition(":")[0]
            self._runtime[kind] = max(each.runtime for each in measured)
        for device in dict.fromkeys(fit.devices):
            ranks = zip(fit.devices, measured, strict=True)
            self._ledger.correct(model, device, sum(each.total for name, each in ranks if name == device))
        for device, planned in fit.elsewhere.items():
            self._ledger.correct(model, device, planned)
        self._lender.tend()
        self.look()

    def resized(self, model: str, change: Mapping[str, int]) -> None:
        """The pool of `model` holds so many bytes more, or fewer, on each device than was booked."""
        held = self._ledger.held_by(model)
        for device, size in change.items():
            self._ledger.correct(model, device, held[device] + size)
        self._lender.tend()
        self.look()

    def held_by(self, model: str) -> int:
        """Bytes that `model` holds or was promised."""
        return sum(self._ledger.held_by(model).values())

    # --- telling ----------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Mapping[str, int]:
        """Bytes of a process without a model, by kind of device."""
        return self._runtime

    @property
    def contested(self) -> bool:
        """Whether anybody waits for memory."""
        return bool(self._wishes)

    def devices(self) -> list[Device]:
        """Devices with the newest figures that are there, and what the ledger has booked."""
        return [
            msgspec.structs.replace(device, memory_reserved=self._ledger.reserved(device.id))
            for device in self._inventory.devices
        ]

    async def refresh(self) -> None:
        """Read new figures of the devices; in a thread, for a driver may take its time."""
        changing = self._changing()
        devices = await asyncio.to_thread(self._inventory.refresh)
        if self._texts is not None:
            self._texts.measure()
        self._ledger.observe(devices, changing | self._changing())
        self._parking.relieve()
        self._changed()

    async def prospect(self, tenant: Tenant, spare: int = 0) -> Prospect:
        """What a wish would come to that was made now, with `spare` as `take` has it."""
        await self.refresh()
        need = self._need(tenant, spare)
        leaving = self._one_more(need) if spare else ()
        outlook = self._outlook()
        strategy = self.eviction.strategy
        for wish in self._line():
            outlook.add(self._need(wish.tenant, wish.spare), strategy, wish.leaving)
        prospect = outlook.add(need, strategy, leaving)
        if prospect.refusal is not None and self._wishes:  # it has to wait for those who wait
            behind = self._outlook().add(need, strategy, leaving)
            prospect = replace(behind, now=False, waits=True)
        if prospect.fit is None or prospect.now:
            return prospect
        victims = [self._tenants[victim] for victim in prospect.fit.victims]
        return replace(
            prospect,
            ahead=len(self._wishes),
            seconds=max((self._seconds_to_leave(victim, tenant) for victim in victims), default=0.0),
        )

    # --- serving wishes ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Something is not what it was: see soon which wishes can be granted."""
        if self._closed:
            return
        self._again = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        """Grant nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        while self._again:
            self._again = False
            try:
                await self.refresh()
                await self._serve()
            except Exception:  # a later look may do better, and who waits must not wait for ever
                log.exception("wishes cannot be served")
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._wishes:
            self._timer = asyncio.get_running_loop().call_later(self._pause(), self.look)

    def _pause(self) -> float:
        """Seconds until the next look, though nothing happens."""
        now = time.monotonic()
        moments = [now + LOOK_SECONDS]
        for wish in self._wishes.values():
            moments += [self._deadline(wish), wish.patience]
        moments += [tenant.turn_ends or 0.0 for tenant in self._tenants.values()]
        moments += map(self._settles_at, self._tenants.values())
        return min(moment for moment in moments if moment > now) - now

    async def _serve(self) -> None:
        """Look at each wish, in order."""
        outlook = self._outlook()
        claimed: set[str] = set()
        waiting = 0
        for wish in self._line():
            if wish.granted.done():
                continue
            late = time.monotonic() >= self._deadline(wish)
            if late and wish.looked_at and self._refuse(wish):
                continue
            wish.looked_at = True
            need = self._need(wish.tenant, wish.spare)
            prospect = outlook.add(need, self.eviction.strategy, wish.leaving)
            if prospect.now:
                await self._grant(wish, prospect.fit)
                continue
            waiting += 1
            victims = prospect.fit.victims if prospect.fit is not None else ()
            # who left while another wish was granted; a look that follows sees that
            victims = tuple(name for name in victims if name in self._tenants)
            if late and self._refuse(wish):
                pass
            elif self._changing():
                claimed.update(victims)  # what there is to have is known in a moment
                self._tell(wish, Place(waiting, victims))
            elif prospect.refusal is not None and self._is_hopeless(wish, need):
                wish.granted.set_exception(prospect.refusal)
            else:
                claimed.update(victims)
                self._shrink(wish, prospect.fit)
                self._ask(wish, need, victims)
                self._tell(wish, Place(waiting, victims))
        for name in self._asked - claimed:
            self._asked.discard(name)
            self._tenants[name].stay()
        if not waiting:
            self._grow()

    def _line(self) -> list[Wish]:
        """The wishes in their order."""
        return sorted(self._wishes.values(), key=lambda wish: wish.turn)

    def _shrink(self, wish: Wish, fit: Fit | None) -> None:
        """Have pools make room, as far as that is what it takes."""
        if fit is None or not fit.shrinks:
            return
        wish.wanted_pages = fit.wanted_pages
        for name, pages in fit.shrinks.items():
            if (tenant := self._tenants.get(name)) is None:
                continue  # it left while another wish was granted; a look that follows sees that
            pool = self._holder(tenant).pool
            if pool is None or pool.spare < pages:
                continue
            log.info("pool shrinks model=%s for=%s pages=%d", name, wish.tenant.id, pages)
            tenant.resize(-pages)

    def _grow(self) -> None:
        """Let pools have what is free that gave memory up, or found others before them."""
        for name, tenant in self._tenants.items():
            pool = self._holder(tenant).pool
            if pool is None or not pool.lacking:
                continue
            pages = min(
                int(pool_share(device) * self._ledger.free(device)) // size
                for device, size in pool.page_bytes.items()
            )
            pages = min(pages, pool.lacking)
            if pages >= GROWTH * pool.lacking:
                log.info("pool grows model=%s pages=%d", name, pages)
                held = self._ledger.held_by(name)
                for device, size in pool.page_bytes.items():
                    self._ledger.correct(name, device, held[device] + pages * size)
                tenant.resize(pages)

    async def _grant(self, wish: Wish, fit: Fit) -> None:
        """Book it, unless somebody was faster: a later look sees that."""
        on_devices = {name: fit.reservations[name] for name in fit.devices}
        await self._lender.make_way(on_devices, reuse=wish.reuse)
        await self._lender.make_way(fit.elsewhere, reuse=False)
        if self._texts is not None:
            await self._texts.make_way(fit.reservations)
        if wish.granted.done():
            return
        self._parking.make_way(wish.tenant.id, fit.reservations)
        try:
            self._ledger.reserve(wish.tenant.id, fit.reservations)
        except CortexError as error:
            log.info("booking waits model=%s reason=%s", wish.tenant.id, error)
            return
        self._tenants[wish.tenant.id] = wish.tenant
        wish.granted.set_result(replace(fit, wanted_pages=max(fit.wanted_pages, wish.wanted_pages)))

    def _ask(self, wish: Wish, need: Need, victims: tuple[str, ...]) -> None:
        """See that `victims` leave, once each has had its turn."""
        self._explain(wish, need, victims)
        for name in victims:
            tenant = self._tenants[name]
            holder = self._holder(tenant)
            ends, now = tenant.turn_ends, time.monotonic()
            if not holder.leaving:
                if holder.busy and (ends is None or ends > now):
                    continue
                if not holder.busy and must_wait(holder, need.priority):
                    continue
                log.info("model makes way model=%s for=%s busy=%s", name, wish.tenant.id, holder.busy)
                self._asked.add(name)
                tenant.give_way()
            if name in self._asked and holder.busy and now >= wish.patience:
                tenant.interrupt()

    def _explain(self, wish: Wish, need: Need, victims: tuple[str, ...]) -> None:
        """One line in the log for each decision: who leaves, and why not another."""
        if victims == wish.victims:
            return
        wish.victims = victims
        holders = self._holders()
        leave = [holders.pop(name) for name in victims]
        devices = candidates_for(need, self._ledger.devices)
        strategy, now = self.eviction.strategy, time.monotonic()
        why = explain(leave, holders.values(), need.priority, devices, strategy, now)
        log.info("making room model=%s %s", wish.tenant.id, why)

    def _one_more(self, need: Need) -> tuple[str, ...]:
        """The model that would leave first, if one can leave now."""
        devices = candidates_for(need, self._ledger.devices)
        first = order(self._holders().values(), need.priority, devices, self.eviction.strategy)[:1]
        return tuple(holder.model for holder in first if not must_wait(holder, need.priority))

    def _settles_at(self, tenant: Tenant) -> float:
        """When it has been loaded for as long as it may stay where an equal wants its memory."""
        return tenant.ready_at + residency(self.eviction.min_residency_seconds, tenant.reload_seconds)

    def _seconds_to_leave(self, tenant: Tenant, other: Tenant) -> float:
        """How long it would take until it is gone for `other`, at a guess."""
        holder, priority = self._holder(tenant), other.need(self._runtime).priority
        seconds = tenant.seconds_to_leave
        if not holder.busy and must_wait(holder, priority):
            seconds = max(seconds, self._settles_at(tenant) - time.monotonic())
        return seconds

    def _tell(self, wish: Wish, place: Place) -> None:
        if place != wish.place:
            wish.place = place
            wish.tell(place)

    def _is_hopeless(self, wish: Wish, need: Need) -> bool:
        """Whether it would not fit either if nobody else waited."""
        return self._outlook().add(need, self.eviction.strategy, wish.leaving).refusal is not None

    def _deadline(self, wish: Wish) -> float:
        """Until when the request may wait, monotonic, that has waited longest."""
        return max(wish.made, wish.tenant.waits_since) + self._settings.wait_seconds

    def _refuse(self, wish: Wish) -> bool:
        """Refuse those who have waited for too long. Returns whether nobody is left who waits."""
        longest, now = self._settings.wait_seconds, time.monotonic()
        holders = ", ".join(wish.place.holders) if wish.place is not None else ""
        error = CortexError(
            Code.INSUFFICIENT_MEMORY,
            f"{wish.tenant.id} waited {longest:g} s (memory.wait_seconds) for memory "
            + (f"that {holders} had not finished with" if holders else "that others waited for before it"),
            retry_after=max(SOONEST_SECONDS, self._seconds_until(wish) - RETURN_SHARE * longest),
        )
        wish.keeps = now + error.retry_after + longest
        if wish.tenant.refuse(now - longest, error):
            return False
        wish.granted.set_exception(error)
        return True

    def _seconds_until(self, wish: Wish) -> float:
        """Until its turn, at a guess: who holds its memory leaves, each before it loads and has its own."""
        need = self._need(wish.tenant, wish.spare)
        fit = self._outlook().add(need, self.eviction.strategy, wish.leaving).fit
        victims = [self._tenants[name] for name in fit.victims] if fit is not None else []
        seconds = max((victim.turn_left for victim in victims), default=0.0)
        for other in itertools.takewhile(lambda other: other is not wish, self._line()):
            theirs = self._need(other.tenant, other.spare).devices
            if not need.devices or not theirs or set(need.devices) & set(theirs):
                seconds += other.tenant.reload_seconds + other.tenant.turn_seconds
        return seconds

    def _need(self, tenant: Tenant, spare: int) -> Need:
        rates = rates_of(self._inventory.devices)
        return replace(tenant.need(self._runtime), spare=spare, rates=rates)

    def _outlook(self) -> Outlook:
        """Memory as it is. Processes that wait, what is parked, and idle text processes make way for it."""
        lenders = (self._lender, self._parking, *([self._texts] if self._texts is not None else []))
        free = {
            name: self._ledger.free(name) + sum(lender.booked(name) for lender in lenders)
            for name in self._ledger.devices
        }
        later = {
            name: size + self._parking.coming(name) + self._coming_back(name) for name, size in free.items()
        }
        holders = self._holders()
        for holder in holders.values():
            for name, size in holder.coming.items():
                later[name] += size
        at_work = {NAME: self._texts.at_work} if self._texts is not None else {}
        return Outlook(free, later, holders, at_work, self._ledger.total)

    def _coming_back(self, device: str) -> int:
        """Bytes that others seem to hold since models ended that held as much."""
        now = time.monotonic()
        self._ended = [each for each in self._ended if each.until > now]
        if not self._ended:
            return 0
        more = self._ledger.foreign(device) - min(each.others[device] for each in self._ended)
        return max(0, min(more, sum(each.held.get(device, 0) for each in self._ended)))

    def _changing(self) -> set[str]:
        """Devices of models whose pools shrink or grow now: what is booked there is not what is held."""
        changing = [name for name, holder in self._holders().items() if holder.changes]
        return {device for name in changing for device in self._ledger.held_by(name)}

    def _holders(self) -> dict[str, Holder]:
        """Who holds memory, by name."""
        return {name: self._holder(tenant) for name, tenant in self._tenants.items()}

    def _holder(self, tenant: Tenant) -> Holder:
        holder = tenant.holder(self._ledger.held_by(tenant.id))
        return replace(holder, settled=time.monotonic() >= self._settles_at(tenant))
