"""Processes that wait warm for a model: taken, given back, replaced, and never in the way.

Where it matters what a process holds or computes, it is a real worker with the demo model; else one that has
not imported torch, with a simulated model.
"""

import asyncio
import os
import re
import signal
import sys
from array import array
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

import neuron.processes.group
import neuron.processes.standby
import neuron.processes.worker
from ipc.errors import CortexError
from ipc.messages.replies import Finished
from ipc.messages.requests import Load, Unload
from ipc.messages.state import Device
from ipc.worker_messages import FailurePlan, SamplingParams, SimulatedSpec, Submit
from neuron.catalogue.catalogue import DEMO_FOLDER
from neuron.memory.ledger import Ledger
from neuron.processes.backoff import Backoff
from neuron.processes.group import Sink, WorkerGroup
from neuron.processes.spawn import GroupSpec
from neuron.processes.standby import Standby
from neuron.processes.worker import Worker
from tests.doubles import stands_for
from tests.neuron.harness import PATIENCE, Neuron, chat, children_of, is_running, until, wait_until
from workers.checkpoints.reading import read_card

TOTAL = 8 << 30  # bytes of the device that the tests have
UNTORCHED = (sys.executable, "-m", "tests.neuron.untorched")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(neuron.processes.standby, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(neuron.processes.worker, "PROGRAM", UNTORCHED)


@pytest.fixture
def real(monkeypatch):
    """What makes groups serve the demo model, with real workers."""
    monkeypatch.setattr(neuron.processes.worker, "PROGRAM", (sys.executable, "-m", "workers"))
    return {"engine": "transformer", "simulated": None, "card": read_card(DEMO_FOLDER)}


class Place:
    """A device with its ledger and its waiting process, as `Models` has it."""

    def __init__(self, *, cycles=50, enabled=True):
        device = Device(id="cpu", kind="cpu", name="", memory_total=TOTAL, memory_free=TOTAL)
        self.ledger = Ledger([device])
        self.loading = self.working = False
        self.standby = Standby(
            self.ledger,
            enabled=enabled,
            wanted=lambda: ["cpu"],
            loading=lambda: self.loading,
            working=lambda: self.working,
            cycles=lambda: cycles,
            backoff=Backoff(0.01, 0.05),
        )

    @property
    def pid(self):
        """Of the process that waits; None: there is none."""
        children = [pid for pid in children_of(os.getpid()) if pid not in self.others]
        assert len(children) <= 1
        return children[0] if children and self.standby.booked("cpu") else None

    async def warm(self, other_than=None):
        """Wait for a process that is warm; its pid."""
        self.standby.tend()
        return await until(
            lambda: (
                self.standby.booked("cpu") not in (0, neuron.processes.standby.UNMEASURED_BYTES["cpu"])
                and self.pid != other_than
                and self.pid
            ),
            "a warm process",
        )

    @asynccontextmanager
    async def serving(self, *, devices=("cpu",), **changes):
        """A group that is ready; stopped in order afterwards."""
        group = self.group(devices=devices, **changes)
        group.start()
        try:
            await group.ready(PATIENCE)
            yield group
        finally:
            await group.stop()
            self.standby.settle()

    def group(self, *, devices=("cpu",), **changes):
        values = {
            "model": "demo",
            "engine": "simulated",
            "simulated": SimulatedSpec(answer=[1]),
            "threads": 1,
            "context_length": 256,
            "max_sequences": 2,
            "max_step_tokens": 64,
            "kv_pages": 16,
            "log_level": "ERROR",
        }
        self.deaths = []
        return WorkerGroup(
            GroupSpec(devices=devices, **values | changes),
            1,
            step_deadline=PATIENCE,
            on_loading=lambda fraction, message: None,
            on_steps=lambda steps: None,
            on_death=self.deaths.append,
            standby=self.standby,
        )


@stands_for(Sink)
class Output:
    """The tokens of one request, and how probable each of them was."""

    def __init__(self, group, max_tokens=4):
        self.tokens = []
        self.finished = asyncio.get_running_loop().create_future()
        prompt = array("I", range(5, 25)).tobytes()
        group.submit(Submit(1, prompt, max_tokens, SamplingParams(temperature=0.0, logprobs=0)), self)

    def advance(self, report):
        self.tokens += [(token.token, token.logprob) for token in report.details.logprobs]
        if report.finish:
            self.finished.set_result(self.tokens)

    async def all(self):
        return await asyncio.wait_for(self.finished, PATIENCE)


def run(scenario, **settings):
    """Run a test with a place of its own, which leaves no process and no descriptor behind."""

    async def checked():
        await asyncio.sleep(0)
        before = len(os.listdir("/proc/self/fd"))
        place = Place(**settings)
        place.others = children
        try:
            await scenario(place)
        finally:
            await place.standby.close()
        assert len(os.listdir("/proc/self/fd")) == before
        assert place.standby.booked("cpu") == 0

    children = children_of(os.getpid())
    asyncio.run(checked())
    assert children_of(os.getpid()) == children


def switches(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status)))


def shared_memory(pid):
    """Mappings of rings and heartbeat pages."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:cortex")


def kill(pid):
    """Kill a process and wait until that is so; it is not reaped."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- taken and given back -------------------------------------------------------------------------------


def test_a_model_of_some_size_leaves_nothing_behind(tmp_path, real):
    """Its weights are read, and packed, by several threads."""
    shape = {"vocab_size": 16_384, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
    Qwen3ForCausalLM(Qwen3Config(**shape, dtype="bfloat16")).bfloat16().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")

    async def scenario(place):
        pid = await place.warm()
        before = place.standby.booked("cpu")
        sized = real | {"card": read_card(tmp_path), "threads": 2, "max_step_tokens": 256}
        for _ in range(2):
            async with place.serving(**sized) as group:
                await Output(group).all()
            assert place.pid == pid
        assert place.standby.booked("cpu") < before + (48 << 20)

    run(scenario)


def test_twelve_loads_leave_one_process_as_it_was(real):
    async def scenario(place):
        pid = await place.warm()
        answers, baseline = set(), place.standby.booked("cpu")
        assert 50 << 20 < baseline < 1 << 30
        for cycle in range(12):
            async with place.serving(**real) as group:
                assert [rank.pid for rank in group.ranks()] == [pid]
                assert place.standby.booked("cpu") == 0
                answers.add(tuple(await Output(group).all()))
            assert place.pid == pid
            if cycle == 5:
                there, here = descriptors(pid), descriptors(os.getpid())
                memory = place.standby.booked("cpu")
        assert len(answers) == 1
        assert (descriptors(pid), descriptors(os.getpid())) == (there, here)
        assert place.standby.booked("cpu") <= memory + (6 << 20)
        assert memory <= baseline + neuron.processes.standby.HOST_TOLERANCE
        assert shared_memory(pid) == 0

    run(scenario, cycles=100)


def test_the_same_process_serves_models_of_other_threads_and_types(real):
    async def scenario(place):
        pid = await place.warm()
        answers = []
        for changes in ({"dtype": "float32"}, {"threads": 2}, {"dtype": "float32"}):
            async with place.serving(**real | changes) as group:
                assert [rank.pid for rank in group.ranks()] == [pid]
                answers.append(await Output(group).all())
        assert answers[0] == answers[2] != answers[1]

    run(scenario)


def test_a_group_takes_the_one_that_waits_and_leaves_one(real):
    async def scenario(place):
        pid = await place.warm()
        async with place.serving(devices=("cpu", "cpu"), **real) as group:
            pids = [rank.pid for rank in group.ranks()]
            assert pids[0] == pid
            assert await Output(group).all()
        assert place.pid in pids

    run(scenario)


def test_after_so_many_loads_a_fresh_process_takes_its_place():
    async def scenario(place):
        pid = await place.warm()
        async with place.serving():
            pass
        assert place.pid == pid
        async with place.serving():
            pass
        assert not is_running(pid)
        assert await place.warm() != pid

    run(scenario, cycles=2)


def test_a_process_whose_memory_is_not_back_is_not_used_again(monkeypatch):
    monkeypatch.setattr(neuron.processes.standby, "HOST_TOLERANCE", -(1 << 30))

    async def scenario(place):
        pid = await place.warm()
        async with place.serving():
            pass
        assert not is_running(pid)
        assert await place.warm() != pid

    run(scenario)


def test_a_simulated_model_neither_takes_nor_leaves_one():
    async def scenario(place):
        group = place.group()
        group._standby = None
        pid = await place.warm()
        group.start()
        await group.ready(PATIENCE)
        assert [rank.pid for rank in group.ranks()] != [pid]
        await group.stop()
        assert place.pid == pid

    run(scenario)


# --- killed ---------------------------------------------------------------------------------------------


def test_a_process_killed_while_it_waits_is_replaced():
    async def scenario(place):
        pid = await place.warm()
        os.kill(pid, signal.SIGKILL)
        assert await until(lambda: place.pid != pid and place.pid, "another") != pid
        pid = await place.warm()
        async with place.serving() as group:
            assert [rank.pid for rank in group.ranks()] == [pid]

    run(scenario)


def test_one_that_was_killed_and_not_noticed_yet_is_not_taken():
    async def scenario(place):
        pid = await place.warm()
        kill(pid)
        async with place.serving() as group:
            assert [rank.pid for rank in group.ranks()] != [pid]

    run(scenario)


def test_a_process_killed_while_it_takes_its_orders_is_no_fault_of_the_model():
    async def scenario(place):
        pid = await place.warm()
        os.kill(pid, signal.SIGSTOP)
        group = place.group()
        group.start()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CortexError, match="SIGKILL"):
            await group.ready(PATIENCE)
        await group.stop()
        assert group.died_waiting
        async with place.serving() as group:
            assert not group.died_waiting

    run(scenario)


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_a_process_that_hangs_when_it_is_taken_is_ended_and_no_fault_of_the_model(monkeypatch, devices):
    monkeypatch.setattr(neuron.processes.group, "ANSWER_SECONDS", 0.2)

    async def scenario(place):
        pid = await place.warm()
        os.kill(pid, signal.SIGSTOP)
        group = place.group(devices=devices)
        group.start()
        with pytest.raises(CortexError, match=rf"rank 0 \(pid {pid}, cpu\) of demo hung for 0.2 seconds"):
            await group.ready(PATIENCE)
        await group.stop()
        assert group.died_waiting
        assert group.was_killed
        assert not is_running(pid)
        async with place.serving(devices=devices) as group:
            assert not group.died_waiting

    run(scenario)


def test_a_process_that_died_serving_or_loading_does_not_come_back():
    async def scenario(place):
        pid = await place.warm()
        async with place.serving() as group:
            os.kill(pid, signal.SIGKILL)
            await group.wait_gone()
        assert place.pid is None
        assert not group.died_waiting
        assert len(place.deaths) == 1
        pid = await place.warm()
        group = place.group(simulated=SimulatedSpec(failure=FailurePlan(fail_load="a bad shard")))
        group.start()
        with pytest.raises(CortexError):
            await group.ready(PATIENCE)
        await group.stop()
        assert not group.died_waiting
        assert not is_running(pid)

    run(scenario)


def test_one_that_does_not_give_its_memory_back_in_time_is_ended(monkeypatch):
    monkeypatch.setattr("neuron.processes.group.RELEASE_SECONDS", 0.2)

    async def scenario(place):
        pid = await place.warm()
        async with place.serving():
            os.kill(pid, signal.SIGSTOP)
        assert place.pid is None
        assert not is_running(pid)

    run(scenario)


def test_a_process_that_does_not_get_warm_is_ended(monkeypatch):
    monkeypatch.setattr(neuron.processes.standby, "WARM_SECONDS", 0.01)

    async def scenario(place):
        place.standby.tend()
        first = await until(lambda: place.pid, "a process")
        await until(lambda: place.pid not in (None, first), "another")

    run(scenario)


# --- in nobody's way ------------------------------------------------------------------------------------


def test_none_is_started_while_something_loads_and_soon_where_requests_run(monkeypatch):
    monkeypatch.setattr(neuron.processes.standby, "PATIENCE_SECONDS", 1.0)

    async def scenario(place):
        place.loading = place.working = True
        place.standby.tend()
        await asyncio.sleep(0.5)
        assert place.pid is None
        place.loading = False
        place.standby.tend()
        await asyncio.sleep(0.1)
        assert place.pid is None
        await until(lambda: place.pid, "a process")

    run(scenario)


def test_without_one_asked_for_none_is_started_and_none_is_kept():
    async def scenario(place):
        place.standby.tend()
        async with place.serving() as group:
            [rank] = group.ranks()
        assert not is_running(rank.pid)

    run(scenario, enabled=False)


def test_it_waits_without_waking_up():
    async def scenario(place):
        pid = await place.warm()
        for _ in range(int(PATIENCE / 0.5)):  # it may still be on its way to its wait
            before = switches(pid)
            await asyncio.sleep(0.5)
            if switches(pid) == before:
                return
        raise AssertionError("it keeps waking up")

    run(scenario)


def test_it_makes_way_for_what_cannot_use_it_only_where_it_must():
    async def scenario(place):
        pid = await place.warm()
        held = place.standby.booked("cpu")
        fits = {"cpu": TOTAL - held}
        await place.standby.make_way(fits, reuse=False)
        assert place.pid == pid
        await place.standby.make_way({"cpu": TOTAL - held + 1}, reuse=False)
        assert place.pid is None
        assert not is_running(pid)
        assert place.ledger.free("cpu") == TOTAL

    run(scenario)


def test_what_takes_it_over_has_its_memory_and_what_fails_gives_it_back():
    async def scenario(place):
        pid = await place.warm()
        await place.standby.make_way({"cpu": TOTAL}, reuse=True)
        place.ledger.reserve("model", {"cpu": TOTAL})
        place.ledger.release("model")
        place.standby.settle()
        assert place.pid == pid
        assert place.standby.booked("cpu") > 0
        await place.standby.make_way({"cpu": TOTAL}, reuse=True)
        place.ledger.reserve("model", {"cpu": TOTAL})
        place.standby.settle()
        await until(lambda: not is_running(pid), "its end")

    run(scenario)


def test_where_its_memory_is_not_free_none_is_started():
    async def scenario(place):
        place.ledger.reserve("model", {"cpu": TOTAL})
        place.standby.tend()
        await asyncio.sleep(0.2)
        assert children_of(os.getpid()) == place.others

    run(scenario)


def test_a_start_that_fails_leaves_nothing_booked(monkeypatch):
    def broken():
        raise OSError("no more processes")

    monkeypatch.setattr(Worker, "start", broken)

    async def scenario(place):
        place.standby.tend()
        await asyncio.sleep(0.1)
        assert place.standby.booked("cpu") == 0

    run(scenario)


# --- a whole neuron -------------------------------------------------------------------------------------


def test_a_neuron_keeps_one_for_its_transformers_and_it_dies_with_it(tmp_path):
    other = {"id": "other", "path": str(DEMO_FOLDER)}
    with Neuron(tmp_path, [other], standby=True) as daemon, daemon.client() as client:
        wait_until(lambda: "standby ready" in daemon.log, "a warm process")
        [pid] = daemon.children()
        assert daemon.health().devices[0].memory_reserved > 0
        assert isinstance(client.ask(chat("demo"), PATIENCE), Finished)
        assert daemon.workers("demo") == [pid]
        client.ask(Unload(id=0, model="demo"), PATIENCE)
        # the same one, or on a busy machine the next one, if that was started before the end of this load
        [waits] = wait_until(lambda: len(found := daemon.children()) == 1 and found, "one that waits")
        assert daemon.model("demo").pages_total == 0
        client.ask(Load(id=0, model="demo"), PATIENCE)
        assert daemon.workers("demo") == [waits]
        wait_until(lambda: len(daemon.children()) == 2, "the next one")
        client.ask(Load(id=0, model="other"), PATIENCE)
        pids = daemon.children()
        assert sorted(pids) == sorted(daemon.workers("demo") + daemon.workers("other"))
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: not any(map(is_running, pids)), "all to die with it")


def test_a_load_whose_process_hangs_begins_again_with_a_new_one(tmp_path):
    with Neuron(tmp_path, standby=True) as daemon, daemon.client() as client:
        wait_until(lambda: "standby ready" in daemon.log, "a warm process")
        [pid] = daemon.children()
        os.kill(pid, signal.SIGSTOP)
        assert isinstance(client.ask(chat("demo"), PATIENCE), Finished)
        assert not is_running(pid)
        assert daemon.log.count("load begins again") == daemon.log.count("hung for 5 seconds") == 1


def test_a_neuron_ends_while_one_waits(tmp_path):
    with Neuron(tmp_path, standby=True) as daemon:
        [pid] = wait_until(daemon.children, "a process")
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE) == 0
        assert not is_running(pid)
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("enabled", [True, False])
def test_what_a_process_takes_is_measured_and_not_written_down(enabled):
    """The load that asks gets the process; where none shall wait, none stays."""

    async def scenario(place):
        measured = await place.standby.measure("cpu")
        assert 1 << 20 < measured < 1 << 30
        if enabled:
            assert place.standby.booked("cpu") == await place.standby.measure("cpu") == measured
        else:
            assert place.standby.booked("cpu") == 0
            assert place.standby.take("cpu") is None
        await place.standby.close()
        assert await place.standby.measure("cpu") is None

    run(scenario, enabled=enabled)
