"""The way of a model up that does not lead there: what fails, who is told, and when it is tried again."""

import asyncio
import os
import signal

import msgspec
import pytest

import neuron.models.passage
import neuron.tenancy.epochs
from ipc.errors import Code, CortexError
from ipc.messages.replies import Failed, Finished
from ipc.worker_messages import FailurePlan
from neuron.processes.backoff import Backoff
from neuron.processes.worker import Worker
from tests.neuron.harness import until
from tests.neuron.owned_model import Client, OneRoom, Text, load, owning, run


def test_what_cannot_be_reserved_fails_everybody_who_waits():
    async def scenario():
        refusal = CortexError(Code.INSUFFICIENT_MEMORY, "no room", retry_after=5.0)
        room = OneRoom(refusal=refusal)
        async with owning(room) as model:
            client = Client(model, 1)
            with pytest.raises(CortexError, match="no room"):
                await load(model)
            failed = await client.last()
            assert (failed.code, failed.retry_after) == (Code.INSUFFICIENT_MEMORY, 5.0)
            assert (model.status, model.error) == ("unloaded", "no room")  # it is not at fault
            room.refusal = None
            await load(model)
            assert model.error is None

    run(scenario())


def test_a_tokenizer_that_cannot_be_read_fails_the_load_before_any_process():
    def broken():
        raise CortexError(Code.MODEL_LOAD_FAILED, "tokenizer.json is no tokenizer")

    async def scenario():
        async with owning(text=broken) as model:
            with pytest.raises(CortexError, match=r"tokenizer\.json"):
                await load(model)
            assert model.state().epoch == 0

    run(scenario())


def test_a_model_whose_tokenizer_cannot_be_read_has_failed_before_anybody_loads_it():
    texts = [CortexError(Code.MODEL_LOAD_FAILED, "tokenizer.json is no tokenizer"), Text()]

    def read():
        if isinstance(said := texts.pop(0), CortexError):
            raise said
        return said

    async def scenario():
        async with owning(text=read) as model:
            with pytest.raises(CortexError, match=r"tokenizer\.json"):
                await model.text()
            assert (model.state().status, model.error) == ("failed", "tokenizer.json is no tokenizer")
            await model.text()  # its file was replaced
            await load(model)
            assert (model.status, model.error) == ("ready", None)

    run(scenario())


def test_restarts_that_fail_in_a_row_end_in_failed_with_nothing_held():
    async def scenario():
        room = OneRoom()
        async with owning(room, failure=FailurePlan(die_at_step=2)) as model:
            await load(model)
            for key in range(1, 20):
                client = Client(model, key, 10)
                assert isinstance(await client.last(), Failed)
                if model.status == "failed":
                    break
            assert model.status == "failed"
            assert model.state().restarts == neuron.tenancy.epochs.BAD_STARTS
            assert room.released == 1

    run(scenario())


def test_waits_between_restarts_double_up_to_a_limit():
    backoff = Backoff()
    assert [backoff.seconds(n) for n in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.seconds(10_000) == 30


def test_a_rank_that_is_killed_in_its_first_load_is_tried_again():
    async def scenario():
        async with owning(load_seconds=0.5) as model:
            client = Client(model, 1)
            pid = await until(lambda: [rank.pid for rank in model.ranks()])
            os.kill(pid[0], signal.SIGKILL)
            assert isinstance(await client.last(), Finished)
            assert model.state().epoch == 2

    run(scenario())


def test_so_is_one_that_is_killed_before_it_reads_what_to_do(monkeypatch):
    order, orders = Worker.order, []

    def unread(worker, spec):
        orders.append(spec)
        if len(orders) == 1:
            raise BrokenPipeError("the other end is gone")
        order(worker, spec)

    async def scenario():
        monkeypatch.setattr(Worker, "order", unread)
        async with owning() as model:
            await load(model)
        assert len(orders) == 2

    run(scenario())


def test_a_load_that_runs_out_of_device_memory_asks_for_more_of_it():
    async def scenario():
        room = OneRoom()
        async with owning(room, failure=FailurePlan(out_of_memory_in_load=True, epochs=1)) as model:
            await load(model)
            assert room.spares[0] == 0 < room.spares[1]
            assert room.released == 1

    run(scenario())


def test_a_model_that_is_pinned_no_longer_is_not_tried_again():
    async def scenario():
        room = OneRoom(refusal=CortexError(Code.INSUFFICIENT_MEMORY, "too large"))
        async with owning(room, settings={"pin": True}) as model:
            model.bring_up()
            await until(lambda: len(room.spares) > 1 and model.status == "unloaded")
            model.pin(False)
            tries = len(room.spares)
            await asyncio.sleep(0.2)
            assert (model.status, len(room.spares)) == ("unloaded", tries)

    run(scenario())


def test_a_model_that_failed_by_itself_asks_for_memory_again_for_a_load_by_hand_or_after_a_pause():
    async def scenario():
        room = OneRoom()
        broken = FailurePlan(fail_load="a bad shard", epochs=2)
        async with owning(room, backoff=Backoff(60.0, 60.0), failure=broken) as model:
            client = Client(model, 1)
            assert (await client.last()).code == Code.MODEL_LOAD_FAILED
            assert len(room.spares) == 1
            with pytest.raises(CortexError, match=r"a bad shard; a request has it tried again in") as early:
                Client(model, 2)
            assert (early.value.code, model.status) == (Code.MODEL_LOAD_FAILED, "failed")
            assert 0 < early.value.retry_after <= 60
            assert len(room.spares) == 1
            with pytest.raises(CortexError, match=r"a bad shard$"):
                await load(model)
            await load(model)
            assert isinstance(await Client(model, 3).last(), Finished)

    run(scenario())


def test_a_tokenizer_that_could_not_be_read_for_a_moment_holds_up_no_request():
    texts = [CortexError(Code.INTERNAL, "no process could be started to read it"), Text()]

    def read():
        if isinstance(text := texts.pop(0), CortexError):
            raise text
        return text

    async def scenario():
        async with owning(text=read, backoff=Backoff(60.0, 60.0)) as model:
            with pytest.raises(CortexError, match="no process could be started"):
                await model.text()
            assert model.status == "failed"
            await model.text()
            assert isinstance(await Client(model, 1).last(), Finished)

    run(scenario())


def test_a_failure_before_it_had_memory_holds_up_no_request():
    async def scenario():
        room = OneRoom(refusal=CortexError(Code.INTERNAL, "no figures of the devices"))
        async with owning(room, backoff=Backoff(60.0, 60.0)) as model:
            assert (await Client(model, 1).last()).code == Code.INTERNAL
            assert model.status == "failed"
            room.refusal = None
            assert isinstance(await Client(model, 2).last(), Finished)

    run(scenario())


def test_its_pause_grows_with_failures_in_a_row_that_had_memory_and_other_settings_end_it():
    async def scenario():
        room = OneRoom(refusal=CortexError(Code.INSUFFICIENT_MEMORY, "no room"))
        async with owning(
            room, backoff=Backoff(25.0, 1000.0), failure=FailurePlan(fail_load="bad", epochs=4)
        ) as model:

            async def pause_after(*, loads):
                for _ in range(loads):
                    with pytest.raises(CortexError):
                        await load(model)
                with pytest.raises(CortexError, match="a request has it tried again in") as early:
                    Client(model, 1)
                return pytest.approx(early.value.retry_after, abs=20)

            for key in range(2, 5):
                assert (await Client(model, key).last()).code == Code.INSUFFICIENT_MEMORY
            room.refusal = None
            assert await pause_after(loads=1) == 50
            assert await pause_after(loads=1) == 100
            model.renew(msgspec.structs.replace(model.settings, priority=7), model.description)
            assert await pause_after(loads=1) == 50
            model.renew(msgspec.structs.replace(model.settings, priority=8), model.description)
            assert (await Client(model, 5).last()).message.endswith("bad")
            await load(model)

    run(scenario())


def test_a_pinned_model_that_was_short_of_memory_may_have_others_leave_again_after_a_while(monkeypatch):
    monkeypatch.setattr(neuron.models.passage, "SHORTAGE_SECONDS", 0.5)

    async def scenario():
        looks = []
        room = OneRoom()
        room.fits = looks.append
        short = FailurePlan(out_of_memory_in_load=True, epochs=3)
        async with owning(room, settings={"pin": True}, failure=short) as model:
            model.bring_up()
            await until(lambda: model.status == "ready")
            assert looks
            assert room.spares[3:] == [0]

    run(scenario())


def test_one_that_comes_back_by_itself_takes_no_more_memory_than_planned_where_another_would_leave():
    async def scenario():
        room = OneRoom()
        room.fits = lambda spare: not spare
        short = FailurePlan(out_of_memory_in_load=True, epochs=5)
        async with owning(room, settings={"pin": True}, failure=short) as model:
            model.bring_up()
            await until(lambda: model.status == "ready")
            assert room.spares[0] == 0 < room.spares[1] < room.spares[2]  # the first try, at the start
            assert room.spares[3:] == [0, 0, 0]

    run(scenario())


def test_a_look_for_memory_that_fails_is_followed_by_others(caplog):
    async def scenario():
        looks = []

        def fits(spare):
            looks.append(spare)
            if len(looks) <= 3:
                raise OSError("the driver says nothing")
            return True

        room = OneRoom()
        room.fits = fits
        broken = FailurePlan(fail_load="a bad shard", epochs=1)
        async with owning(room, settings={"pin": True}, failure=broken) as model:
            model.bring_up()
            await until(lambda: model.status == "ready")
            assert len(looks) == 4

    run(scenario())
    assert caplog.text.count("OSError: the driver says nothing") == 1


def test_one_that_failed_and_is_pinned_no_longer_looks_for_no_memory():
    async def scenario():
        looks = []
        room = OneRoom()
        room.fits = looks.append
        broken = FailurePlan(fail_load="a bad shard", epochs=9)
        async with owning(room, settings={"pin": True}, failure=broken) as model:
            model.bring_up()
            await until(lambda: len(looks) > 1)
            model.pin(False)
            await asyncio.sleep(0.1)  # it may look just now
            count = len(looks)
            await asyncio.sleep(0.2)
            assert len(looks) == count

    run(scenario())


@pytest.mark.parametrize("drained", [False, True])
def test_a_default_that_waits_for_memory_to_come_back_does_not_once_it_is_drained(drained):
    async def scenario():
        async with owning(failure=FailurePlan(out_of_memory_in_load=True, epochs=3)) as model:
            with pytest.raises(CortexError):
                await load(model)
            model.displaced = True
            model.come_back()
            model.drain(drained)
            if not drained:
                await until(lambda: model.status == "ready")
            await asyncio.sleep(0.2)
            assert model.status == ("unloaded" if drained else "ready")

    run(scenario())


def test_a_pinned_model_that_does_not_fit_is_one_warning_for_each_reason(caplog):
    async def scenario():
        room = OneRoom(refusal=CortexError(Code.INSUFFICIENT_MEMORY, "too large"))
        async with owning(room, settings={"pin": True}) as model:
            model.bring_up()
            await until(lambda: len(room.spares) > 3)
            room.refusal = CortexError(Code.INSUFFICIENT_MEMORY, "others are in the way")
            tries = len(room.spares)
            await until(lambda: len(room.spares) > tries + 3)

    run(scenario())
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert [text.partition("reason=")[2] for text in warnings] == ["too large", "others are in the way"]


def test_a_load_that_never_finds_memory_says_so_and_the_model_is_not_at_fault():
    async def scenario():
        async with owning(failure=FailurePlan(out_of_memory_in_load=True)) as model:
            with pytest.raises(CortexError) as refused:
                await load(model)
            assert refused.value.code == Code.INSUFFICIENT_MEMORY
            assert (model.status, model.state().epoch) == ("unloaded", 3)

    run(scenario())
