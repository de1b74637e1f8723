"""Worker groups with real processes, rings and signals, and the simulated engine."""

import asyncio
import os
import signal
import sys
from array import array
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from ipc.errors import Code, CortexError
from ipc.worker_messages import FailurePlan, PlacedImage, SimulatedSpec, Submit
from neuron.preparation.placing import PreparedImage
from neuron.processes.group import Sink, WorkerGroup
from neuron.processes.spawn import GroupSpec
from tests.doubles import stands_for
from tests.neuron.harness import children_of

PATIENCE = 150.0  # seconds that any single wait of a test may take


@stands_for(Sink)
class Output:
    """A sink that remembers."""

    def __init__(self):
        self.tokens = []
        self.finished = asyncio.get_running_loop().create_future()
        self.started = asyncio.Event()

    def advance(self, report):
        self.tokens += report.token_ids
        if report.token_ids:
            self.started.set()
        if report.finish:
            self.finished.set_result(report.finish)


class Death:
    """The owner of a group, as far as a group knows it."""

    def __init__(self):
        self.errors = []
        self.told = asyncio.Event()

    def __call__(self, error):
        self.errors.append(error)
        self.told.set()


def submit(request_id, max_tokens):
    return Submit(request_id, array("I", [1, 2, 3]).tobytes(), max_tokens)


def make_group(death, *, ranks=1, step_deadline=30.0, epoch=1, device="cpu", **simulated):
    spec = GroupSpec(
        model="sim",
        engine="simulated",
        devices=(device,) * ranks,
        threads=1,
        context_length=4096,
        max_sequences=4,
        max_step_tokens=256,
        kv_pages=512,
        simulated=SimulatedSpec(answer=[7, 8, 9], **simulated),
    )
    return WorkerGroup(
        spec,
        epoch,
        step_deadline=step_deadline,
        on_loading=lambda fraction, message: None,
        on_steps=lambda steps: None,
        on_death=death,
    )


@asynccontextmanager
async def running(death, **settings):
    group = make_group(death, **settings)
    group.start()
    try:
        await group.ready(PATIENCE)
        yield group
    finally:
        await group.stop()


def run(coroutine):
    """Run a test; afterwards this process must have the descriptors and children that it had before."""

    async def checked():
        await asyncio.sleep(0)
        before = len(os.listdir("/proc/self/fd"))
        await coroutine
        assert len(os.listdir("/proc/self/fd")) == before

    children = children_of(os.getpid())  # those of fixtures that outlive this test
    asyncio.run(checked())
    assert children_of(os.getpid()) == children


async def wait_for(awaitable):
    return await asyncio.wait_for(awaitable, PATIENCE)


@pytest.mark.parametrize("ranks", [1, 2])
def test_tokens_come_back_in_order_and_the_group_stops_without_a_trace(ranks):
    async def scenario():
        death = Death()
        async with running(death, ranks=ranks) as group:
            first, second = Output(), Output()
            group.submit(submit(1, 6), first)
            group.submit(submit(2, 4), second)
            assert await wait_for(first.finished) == "length"
            assert await wait_for(second.finished) == "length"
            assert first.tokens == [7, 8, 9, 7, 8, 9]
            assert second.tokens == [7, 8, 9, 7]
            assert not group.open
            states = group.ranks()
            assert [state.rank for state in states] == list(range(ranks))
            assert {state.device for state in states} == {"cpu"}
        assert death.errors == []
        assert group.ranks() == []

    run(scenario())


def memories(pid):
    """For sums, of which a process holds descriptors: their numbers."""
    found = set()
    for link in [*Path(f"/proc/{pid}/fd").iterdir()]:
        with suppress(FileNotFoundError):  # that of the folder itself is closed by now
            if "cortex-sums" in os.readlink(link):
                found.add(os.stat(link).st_ino)
    return found


@pytest.mark.parametrize(("device", "ranks"), [("cuda:0", 3), ("cuda:0", 1), ("cpu", 2)])
def test_ranks_on_gpus_have_memory_in_common_for_small_sums_and_nobody_else_keeps_it(device, ranks):
    async def scenario():
        async with running(Death(), ranks=ranks, device=device) as group:
            found = [memories(state.pid) for state in group.ranks()]
            assert len(found) == ranks
            assert len(set.union(*found)) == (device != "cpu" and ranks > 1)
            assert all(each == found[0] for each in found)
            assert not memories(os.getpid())

    run(scenario())


def test_a_request_that_cannot_travel_is_refused_and_is_in_nobodys_way():
    async def scenario():
        async with running(Death()) as group:
            large = Submit(1, bytes(4), 4, cache_salt="x" * (1 << 20))
            with pytest.raises(CortexError) as refused:
                group.submit(large, Output())
            assert refused.value.code == Code.BAD_REQUEST
            assert not group.open
            kept = Output()
            group.submit(submit(2, 4), kept)
            assert await wait_for(kept.finished) == "length"

    run(scenario())


def test_images_that_the_ring_has_no_room_for_follow_as_soon_as_it_has():
    async def scenario():
        async with running(Death()) as group:
            pixels = bytes(40 << 20)
            placed = PlacedImage(b"digest", 1, 1, 1)
            shown, plain = Output(), Output()
            order = msgspec.structs.replace(submit(1, 4), images=[placed])
            group.submit(order, shown, [PreparedImage(placed, pixels)])
            group.submit(submit(2, 4), plain)
            waiting = sum(map(sys.getsizeof, group._commands._backlog))
            assert waiting < len(pixels) / 100  # they are not copied ahead
            assert await wait_for(shown.finished) == "length"
            assert await wait_for(plain.finished) == "length"

    run(scenario())


def test_an_aborted_request_ends_and_its_neighbour_goes_on():
    async def scenario():
        async with running(Death(), step_seconds=0.002) as group:
            cut, kept = Output(), Output()
            group.submit(submit(1, 4000), cut)
            group.submit(submit(2, 30), kept)
            await wait_for(cut.started.wait())
            group.abort(1)
            assert await wait_for(cut.finished) == "aborted"
            assert await wait_for(kept.finished) == "length"

    run(scenario())


@pytest.mark.parametrize(("ranks", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_killed_rank_ends_the_group_and_is_named(ranks, victim):
    async def scenario():
        death = Death()
        async with running(death, ranks=ranks, step_seconds=0.001) as group:
            output = Output()
            group.submit(submit(1, 4000), output)
            await wait_for(output.started.wait())
            pid = group.ranks()[victim].pid
            os.kill(pid, signal.SIGKILL)
            await wait_for(death.told.wait())
            assert list(group.open) == [1]
            await group.wait_gone()
        [error] = death.errors
        assert error.code == Code.WORKER_DIED
        assert f"rank {victim} (pid {pid}, cpu)" in error.message
        assert "SIGKILL" in error.message

    run(scenario())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_found_by_the_deadline_and_named(victim):
    async def scenario():
        death = Death()
        async with running(death, ranks=2, step_seconds=0.001, step_deadline=1.0) as group:
            output = Output()
            group.submit(submit(1, 4000), output)
            await wait_for(output.started.wait())
            pid = group.ranks()[victim].pid
            os.kill(pid, signal.SIGSTOP)
            await wait_for(death.told.wait())
        [error] = death.errors
        assert error.code == Code.STEP_DEADLINE
        stopped = [part for part in error.message.split("; ") if "process state T" in part]
        assert len(stopped) == 1
        assert f"rank {victim} (pid {pid}, cpu)" in stopped[0]

    run(scenario())


def test_an_idle_group_is_never_called_stuck():
    async def scenario():
        death = Death()
        async with running(death, step_deadline=1.0) as group:
            output = Output()
            group.submit(submit(1, 3), output)
            await wait_for(output.finished)
            await asyncio.sleep(1.5)
            output = Output()
            group.submit(submit(2, 3), output)
            assert await wait_for(output.finished) == "length"
        assert death.errors == []

    run(scenario())


@pytest.mark.parametrize(
    ("failure", "deadline", "code", "words"),
    [
        (FailurePlan(die_at_step=5), PATIENCE, Code.WORKER_DIED, "SIGKILL"),
        (FailurePlan(hang_at_step=5), 1.0, Code.STEP_DEADLINE, "at step 5"),
        (FailurePlan(error_at_step=5), PATIENCE, Code.WORKER_DIED, "step 5"),
    ],
)
def test_a_worker_that_fails_at_a_step_ends_the_group_after_the_steps_before(failure, deadline, code, words):
    async def scenario():
        death = Death()
        async with running(death, failure=failure, step_deadline=deadline) as group:
            output = Output()
            group.submit(submit(1, 4000), output)
            await wait_for(death.told.wait())
        [error] = death.errors
        assert error.code == code
        assert words in error.message
        assert output.tokens == [7, 8, 9, 7]

    run(scenario())


def test_a_failed_load_says_what_the_worker_said():
    async def scenario():
        death = Death()
        group = make_group(death, ranks=2, failure=FailurePlan(rank=1, fail_load="shard 2 is missing"))
        group.start()
        with pytest.raises(CortexError, match="shard 2 is missing") as failed:
            await group.ready(PATIENCE)
        assert failed.value.code == Code.MODEL_LOAD_FAILED
        await group.wait_gone()
        assert death.errors == []

    run(scenario())


def test_a_death_before_the_owner_heard_of_ready_is_not_missed():
    async def scenario():
        death = Death()
        group = make_group(death)
        group.start()
        loaded = asyncio.ensure_future(group.ready(PATIENCE))
        await wait_for(asyncio.wait([loaded]))
        os.kill(group.ranks()[0].pid, signal.SIGKILL)
        await wait_for(death.told.wait())
        with pytest.raises(CortexError, match="SIGKILL"):
            await group.ready(PATIENCE)
        await group.wait_gone()

    run(scenario())


def test_a_load_that_outlives_its_deadline_is_ended():
    async def scenario():
        group = make_group(Death(), load_seconds=60.0)
        group.start()
        with pytest.raises(CortexError, match=r"not ready within 0\.3 seconds; rank 0"):
            await group.ready(0.3)
        await group.wait_gone()

    run(scenario())


def test_a_group_can_be_stopped_while_it_loads():
    async def scenario():
        death = Death()
        group = make_group(death, load_seconds=60.0)
        group.start()
        await asyncio.sleep(0.2)
        await group.stop()
        assert death.errors == []

    run(scenario())


def test_a_rank_that_ignores_everything_is_killed_on_stop():
    async def scenario():
        async with running(Death()) as group:
            os.kill(group.ranks()[0].pid, signal.SIGSTOP)

    run(scenario())


def test_a_spawn_that_fails_leaves_nothing_behind(monkeypatch):
    async def scenario():
        monkeypatch.setattr("neuron.processes.worker.PROGRAM", ("/nonexistent/python",))
        group = make_group(Death(), ranks=2)
        with pytest.raises(CortexError, match="did not start") as failed:
            group.start()
        assert failed.value.code == Code.MODEL_LOAD_FAILED
        await group.wait_gone()

    run(scenario())
