"""Adapters come when somebody asks for one, and leave when others need their place."""

from __future__ import annotations

import asyncio
import json
from math import inf
from types import SimpleNamespace

from ipc.errors import Code, CortexError
from ipc.worker_messages import AdapterReport, DropAdapter, LoadAdapter
from neuron.catalogue.catalogue import DEMO_FOLDER
from neuron.config import Memory, ModelSettings, NeuronConfig
from neuron.description import describe
from neuron.memory import eviction
from neuron.memory.fit import Fit
from neuron.processes.answers import Answers
from neuron.processes.backoff import Backoff
from neuron.tenancy.adapters import Adapters, Group, Line
from tests.doubles import stands_for
from tests.neuron.demo_adapters import write_adapter
from workers.checkpoints.shares import Split

RANKS = 2
SIZE = 100  # bytes of each adapter on each rank


class Request:
    """One that waits for an adapter, or uses it."""

    def __init__(self, adapter):
        self.adapter, self.phase, self.error = adapter, "waiting", None

    def progress(self, progress): ...

    def fail(self, error):
        self.phase, self.error = "ended", error


@stands_for(Group, Line)
class Play:
    """The adapters of a model, with all that they have to do with: worker group, room and requests."""

    def __init__(self, *, most=2, turn=1000.0, count=4, wait=1000.0, pause=0.0):
        self.orders, self.answering = [], Answers(RANKS, "adapter")
        self.held, self.requests = {}, []
        self.answers = True  # ranks do, at once
        self.broken = set()  # adapters that cannot be read,
        self.fault = Code.MODEL_LOAD_FAILED, "is damaged"  # for this reason
        self.refusal = None
        config = NeuronConfig(memory=Memory(turn_seconds=turn, wait_seconds=wait), load_deadline_seconds=30.0)
        self.adapters = Adapters(config, self, self, Backoff(pause, pause))
        self.settings = ModelSettings(id="m", max_adapters=most)
        cards = tuple(SimpleNamespace(name=f"a{number}") for number in range(1, count + 1))
        self.description = SimpleNamespace(adapters=cards, adapter_bytes=lambda share: [SIZE] * count)
        self.open()

    def open(self):
        fit = Fit(("cuda:0", "cuda:1"), {}, (), 1, 1, 1, split=Split.evenly(RANKS))
        self.adapters.open(self.settings, self.description, fit, self)

    # as a group
    def adapt(self, order):
        self.orders.append(order)
        done = self.answering.begin(order.number)
        if self.answers:
            self.answer(order)
        return done

    def answer(self, order):
        for rank in range(RANKS):
            broken = order.number in self.broken and rank == 1 and isinstance(order, LoadAdapter)
            said = (0, *self.fault) if broken else (SIZE,)
            self.answering.take(order.number, rank, AdapterReport(order.number, *said))

    # as a room
    async def take(self, tenant, tell):
        if self.refusal is not None:
            raise self.refusal
        need = tenant.need({})
        assert (need.base, need.devices) == ("m", ("cuda:0", "cuda:1"))
        self.held[tenant.id] = sum(rank.weights for rank in need.ranks)
        return Fit(need.devices, {}, (), 1, 1, 1)

    def correct(self, model, fit, measured, *, learn):
        assert not learn
        self.held[model] = sum(each.total for each in measured)

    def release(self, model):
        self.held.pop(model, None)

    def held_by(self, model):
        return self.held.get(model, 0)

    # as a queue
    def with_adapter(self, number, *phases):
        return [each for each in self.requests if each.adapter == number and each.phase in phases]

    def waits_since(self, adapter):
        return -inf

    def refuse(self, since, error, adapter):
        return False

    def interrupt_adapter(self, number):
        for request in self.with_adapter(number, "queued", "running"):
            request.phase = "waiting"
        self.resume()

    def resume(self):
        for request in self.requests:
            if request.phase == "waiting" and self.adapters.serves(request):
                request.phase = "running"

    # as clients
    async def ask(self, *numbers):
        asked = [Request(number) for number in numbers]
        self.requests += asked
        self.resume()
        await settle()
        return asked

    async def end(self, *requests):
        for request in requests:
            request.phase = "ended"
        self.adapters.look()
        await settle()

    @property
    def loaded(self):
        return self.adapters.loaded

    def phases(self, requests):
        return [request.phase for request in requests]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def playing(scenario, **settings):
    async def main():
        play = Play(**settings)
        try:
            await scenario(play)
        finally:
            play.adapters.close()
        assert not play.held

    asyncio.run(main())


def test_an_adapter_is_read_once_for_all_who_wait_and_booked_as_long_as_it_is_there():
    async def scenario(play):
        play.answers = False
        waiting = await play.ask(1, 1, 1)
        assert play.orders == [LoadAdapter(1)]
        assert play.phases(waiting) == ["waiting"] * 3
        assert play.held == {"m:a1": RANKS * SIZE}
        play.answer(LoadAdapter(1))
        await settle()
        assert play.phases(waiting) == ["running"] * 3
        assert (play.loaded, play.adapters.nbytes) == (["a1"], RANKS * SIZE)

    playing(scenario)


def test_who_was_used_longest_ago_makes_way_and_its_booking_goes_with_it():
    async def scenario(play):
        for number in (1, 2, 1):
            await play.end(*await play.ask(number))
        [third] = await play.ask(3)
        assert third.phase == "running"
        assert play.orders[-2:] == [DropAdapter(2), LoadAdapter(3)]
        assert play.loaded == ["a1", "a3"]
        assert set(play.held) == {"m:a1", "m:a3"}

    playing(scenario)


def test_one_in_use_stays_for_its_turn():
    async def scenario(play):
        running = await play.ask(1, 2)
        [third] = await play.ask(3)
        assert third.phase == "waiting"
        await play.end(running[1])
        assert (third.phase, play.loaded) == ("running", ["a1", "a3"])

    playing(scenario)


def test_one_that_is_interrupted_leaves_and_comes_back_for_whoever_used_it():
    async def scenario(play):
        [running] = await play.ask(1)
        running.output_tokens = 1.0
        adapter = play.adapters._all[1]
        adapter.give_way()
        assert running.phase == "running"
        play.refusal = CortexError(Code.INSUFFICIENT_MEMORY, "others have it")
        adapter.interrupt()
        assert running.phase == "waiting"
        await settle()
        assert (play.loaded, type(play.orders[-1])) == ([], DropAdapter)
        play.refusal = None
        [other] = await play.ask(1)
        assert (other.phase, play.loaded) == ("running", ["a1"])

    playing(scenario)


def test_answers_without_end_that_fill_all_places_take_turns_with_who_waits_for_another_adapter(monkeypatch):
    monkeypatch.setattr(eviction, "RESIDENCY_SHARE", 0.0)

    async def scenario(play):
        endless = await play.ask(1, 2, 3, 4)
        turns = [set() for _ in endless]
        for turn in range(5000):  # some hundred are enough, unless others have the machine
            for request, served in zip(endless, turns, strict=True):
                if request.phase == "running":
                    served.add(turn)
            assert len(play.loaded) <= 2
            if min(map(len, turns)) > 10:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(turns)

    playing(scenario, turn=0.0, wait=0.02)


def test_one_in_use_that_had_its_turn_takes_nothing_new_while_others_wait(monkeypatch):
    monkeypatch.setattr(eviction, "RESIDENCY_SHARE", 0.0)  # or a slow read has a turn that lasts

    async def scenario(play):
        first, second = await play.ask(1, 2)
        [third] = await play.ask(3)
        again = [*await play.ask(1), *await play.ask(2)]
        assert play.phases([third, *again]) == ["waiting", "waiting", "running"]
        await play.end(first)
        assert (third.phase, play.loaded) == ("running", ["a2", "a3"])
        await play.end(second, again[1])  # whose place the one is given that left
        assert (again[0].phase, play.loaded) == ("running", ["a1", "a3"])

    playing(scenario, turn=0.0)


def test_one_that_cannot_be_read_fails_its_own_requests_and_leaves_nothing_on_any_rank():
    async def scenario(play):
        play.broken = {2}
        good, bad = await play.ask(1, 2)
        assert (good.phase, bad.error.code) == ("running", Code.MODEL_LOAD_FAILED)
        assert "m:a2" in bad.error.message
        assert "is damaged" in bad.error.message
        assert play.orders[-1] == DropAdapter(2)
        assert set(play.held) == {"m:a1"}
        play.broken = set()
        [later] = await play.ask(2)
        assert later.phase == "running"

    playing(scenario)


def test_nobody_leaves_again_at_once_for_one_that_could_not_be_read():
    async def scenario(play):
        play.broken = {2}
        [good] = await play.ask(1)
        await play.end(good)
        [bad] = await play.ask(2)
        assert (bad.error.retry_after, play.loaded) == (None, [])
        [good] = await play.ask(1)
        await play.end(good)
        orders = len(play.orders)
        early = await play.ask(2, 2)
        assert [each.error.code for each in early] == [Code.MODEL_LOAD_FAILED] * 2
        assert "is damaged; a request has it tried again in " in early[0].error.message
        assert 0 < early[0].error.retry_after <= 60
        assert (len(play.orders), play.loaded) == (orders, ["a1"])

    playing(scenario, most=1, pause=60.0)


def test_one_for_which_the_device_lacked_memory_is_tried_again_by_the_next_request():
    async def scenario(play):
        play.broken, play.fault = {2}, (Code.INSUFFICIENT_MEMORY, "out of memory")
        [short] = await play.ask(2)
        assert short.error.code == Code.INSUFFICIENT_MEMORY
        play.broken = set()
        [later] = await play.ask(2)
        assert later.phase == "running"

    playing(scenario, pause=60.0)


def test_without_memory_those_who_wait_for_it_are_told():
    async def scenario(play):
        play.refusal = CortexError(Code.INSUFFICIENT_MEMORY, "no room")
        [asked] = await play.ask(1)
        assert asked.error is play.refusal
        assert not play.orders

    playing(scenario)


def test_when_the_group_ends_those_who_wait_are_served_by_the_next_one():
    async def scenario(play):
        play.answers = False
        [running] = await play.ask(1)
        play.answer(LoadAdapter(1))
        await settle()
        [waiting] = await play.ask(2)
        play.answering.end(CortexError(Code.WORKER_DIED, "killed"))
        play.adapters.stop()
        running.fail(CortexError(Code.WORKER_DIED, "killed"))
        await settle()
        assert (waiting.phase, play.loaded) == ("waiting", [])
        assert set(play.held) == {"m:a1", "m:a2"}  # until its processes are gone
        play.answers = True
        play.open()
        assert not play.held
        play.resume()
        await settle()
        assert (waiting.phase, play.loaded) == ("running", ["a2"])

    playing(scenario)


def test_a_wish_that_nobody_has_any_more_is_withdrawn():
    async def scenario(play):
        never = asyncio.get_running_loop().create_future()
        withdrawn = []

        async def take(tenant, tell):
            try:
                await never
            except asyncio.CancelledError:
                withdrawn.append(tenant.id)
                raise

        play.take = take
        asked = await play.ask(1)
        await play.end(*asked)
        assert withdrawn == ["m:a1"]
        assert not play.orders

    playing(scenario)


def test_whose_base_has_another_name_is_told_with_what_is_told_of_the_model(tmp_path):
    write_adapter(tmp_path / "pirate", 1)
    settings = ModelSettings(id="demo", adapters={"pirate": str(tmp_path / "pirate")})
    assert describe(settings, DEMO_FOLDER).notes == []
    about = {"r": 2, "lora_alpha": 2, "base_model_name_or_path": "their/Model-8B"}
    (tmp_path / "pirate" / "adapter_config.json").write_text(json.dumps(about))
    [note] = describe(settings, DEMO_FOLDER).notes
    assert "the adapter pirate says that it was made for their/Model-8B" in note
