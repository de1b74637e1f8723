"""The life of one model: loads, requests, restarts and ends."""

import asyncio
import os
import signal
import time
from math import inf

import msgspec
import pytest

import neuron.models.managed
import neuron.models.passage
import neuron.tenancy.epochs
from ipc.errors import Code, CortexError
from ipc.messages.replies import Cancelled, Delta, Failed, Finished, Progress, Started
from ipc.worker_messages import FailurePlan
from neuron.admission.service_rate import SHORTEST
from neuron.config import NeuronConfig, Queue
from neuron.processes.backoff import Backoff
from neuron.processes.worker import Worker
from tests.neuron.harness import children_of, until
from tests.neuron.owned_model import Client, OneRoom, Text, load, owning, run


def test_the_first_request_loads_the_model_and_sees_how_it_goes():
    async def scenario():
        async with owning(load_seconds=0.2) as model:
            client = Client(model, 1)
            assert model.status == "waiting"
            assert isinstance(await client.last(), Finished)
            stages = [reply.stage for reply in client.replies if isinstance(reply, Progress)]
            assert stages[0] == "queued"
            assert set(stages[1:]) == {"loading"}
            assert model.status == "ready"

    run(scenario())


def test_a_load_that_nobody_waits_for_any_more_goes_on():
    async def scenario():
        async with owning(load_seconds=0.2) as model:
            waiting = asyncio.create_task(load(model))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await until(lambda: model.status == "ready")
            assert model.state().epoch == 1

    run(scenario())


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


def test_a_prompt_that_fits_no_more_after_the_load_is_refused_with_the_real_context():
    async def scenario():
        async with owning(OneRoom(context_length=10)) as model:
            client = Client(model, 1, prompt=[1] * 20)
            failed = await client.last()
            assert failed.code == Code.CONTEXT_LENGTH_EXCEEDED
            assert failed.details == {"prompt_tokens": 20, "context_length": 10, "max_tokens": 3}
            assert model.context_length == 10

    run(scenario())


def test_whom_a_full_line_turns_away_comes_back_after_the_load():
    async def scenario():
        config = NeuronConfig(queue=Queue(limit=1, account_limit=1))
        async with owning(config=config, settings={"max_sequences": 1}, load_seconds=0.1) as model:
            await load(model)
            await model.unload()
            waiting = [Client(model, 1), Client(model, 2)]
            with pytest.raises(CortexError) as refused:
                Client(model, 3)
            assert refused.value.code == Code.QUEUE_FULL
            assert refused.value.retry_after >= SHORTEST + model.load_seconds
            for client in waiting:
                await client.last()

    run(scenario())


def test_who_waits_too_long_is_told_so():
    async def scenario():
        config = NeuronConfig(queue=Queue(wait_seconds=0.2))
        async with owning(config=config, settings={"max_sequences": 1}, step_seconds=0.01) as model:
            await load(model)
            running = Client(model, 1, 900)
            late = Client(model, 2)
            failed = await late.last()
            assert failed.code == Code.QUEUE_TIMEOUT
            assert failed.retry_after >= 1
            assert not running.ended.done()

    run(scenario())


def test_the_time_of_a_load_does_not_count_as_waiting():
    async def scenario():
        config = NeuronConfig(queue=Queue(wait_seconds=0.1))
        async with owning(config=config, load_seconds=0.5) as model:
            assert isinstance(await Client(model, 1).last(), Finished)

    run(scenario())


def test_a_cancelled_request_leaves_the_queue_or_the_worker():
    async def scenario():
        async with owning(settings={"max_sequences": 1}, step_seconds=0.01) as model:
            await load(model)
            clients = [Client(model, key, 900) for key in (1, 2, 3)]
            await clients[0].begun()
            assert (model.state().running, model.state().waiting) == (1, 2)
            for client in clients:
                client.generation.cancel()
                assert isinstance(await client.last(), Cancelled)
            # what was not begun came to nothing
            assert [client.replies[-1].usage.prompt_tokens for client in clients] == [3, 0, 0]
            assert (model.state().running, model.state().waiting) == (0, 0)
            assert model.state().cancelled == 3
            await until(lambda: model.state().pages_free == model.state().pages_total)
            assert isinstance(await Client(model, 4).last(), Finished)

    run(scenario())


def test_unload_while_it_loads_ends_the_load_and_who_waits_for_it():
    async def scenario():
        room = OneRoom()
        children = children_of(os.getpid())
        async with owning(room, load_seconds=60.0) as model:
            client = Client(model, 1)
            await until(lambda: model.ranks())
            await model.unload()
            assert (await client.last()).code == Code.MODEL_LOAD_FAILED
            assert model.status == "unloaded"
            assert room.released == 1
            assert children_of(os.getpid()) == children

    run(scenario())


def test_who_comes_during_an_unload_is_served_by_the_next_load():
    async def scenario():
        async with owning(step_seconds=0.01) as model:
            running = await Client(model, 1, 30).begun()
            unloading = asyncio.create_task(model.unload())
            await asyncio.sleep(0)
            client = Client(model, 2)
            assert model.status == "draining"
            await unloading
            assert isinstance(await running.last(), Finished)
            assert isinstance(await client.last(), Finished)
            assert model.state().epoch == 2

    run(scenario())


def test_a_request_whose_client_left_during_an_unload_starts_no_load():
    async def scenario():
        async with owning() as model:
            await load(model)
            unloading = asyncio.create_task(model.unload())
            await asyncio.sleep(0)
            assert model.status == "unloading"
            client = Client(model, 1)
            client.generation.cancel()
            assert isinstance(await client.last(), Cancelled)
            await unloading
            await asyncio.sleep(0.05)
            assert (model.status, model.state().epoch) == ("unloaded", 1)

    run(scenario())


def test_what_the_worker_had_not_begun_is_taken_back_and_served_by_the_same_one_after_all():
    async def scenario():
        async with owning(settings={"max_sequences": 1}, step_seconds=0.01) as model:
            await load(model)
            running, queued = Client(model, 1, 900), Client(model, 2)
            await until(lambda: running.generation.begun)
            model.tenant.give_way()
            assert (model.status, queued.generation.phase) == ("draining", "waiting")
            turn_ended = model.tenant.turn_ends
            model.tenant.stay()
            assert (model.status, queued.generation.phase) == ("ready", "queued")
            assert model.tenant.turn_ends > turn_ended  # it has another one
            running.generation.cancel()
            assert isinstance(await queued.last(), Finished)
            assert sum(isinstance(reply, Started) for reply in queued.replies) == 1
            assert model.state().epoch == 1

    run(scenario())


def test_an_unload_gives_up_when_requests_run_on_and_the_model_goes_on(monkeypatch):
    monkeypatch.setattr(neuron.models.managed, "UNLOAD_SECONDS", 0.2)

    async def scenario():
        async with owning(step_seconds=0.01) as model:
            await Client(model, 1, 900).begun()
            with pytest.raises(CortexError) as refused:
                await model.unload()
            assert refused.value.code == Code.QUEUE_TIMEOUT
            assert model.status == "ready"
            assert isinstance(await Client(model, 2).last(), Finished)

    run(scenario())


def test_a_model_that_left_for_another_is_counted_once_though_a_wish_to_have_it_back_was_given_up():
    async def scenario():
        async with owning() as model:
            await load(model)
            model.tenant.give_way()
            await until(lambda: model.status == "unloaded")
            client = Client(model, 1)
            assert model.status == "waiting"
            client.generation.cancel()
            assert isinstance(await client.last(), Cancelled)
            await until(lambda: model.status == "unloaded")
            assert (model.state().evictions, model.displaced) == (1, True)

    run(scenario())


def test_a_request_that_is_prepared_keeps_the_wish_of_a_model_in_the_line():
    async def scenario():
        room = OneRoom()
        room.take = lambda *wish, **how: asyncio.Event().wait()  # for ever
        async with owning(room) as model:
            client = Client(model, 1)
            with model.expecting():
                client.generation.cancel()
                assert isinstance(await client.last(), Cancelled)
                assert model.status == "waiting"
            await until(lambda: model.status == "unloaded")

    run(scenario())


def test_a_death_during_an_unload_ends_it_and_who_had_begun_goes_on_with_the_next_load():
    async def scenario():
        async with owning(step_seconds=0.01) as model:
            running = await Client(model, 1, 200).begun()
            unloading = asyncio.create_task(model.unload())
            await asyncio.sleep(0)
            os.kill(model.ranks()[0].pid, signal.SIGKILL)
            await unloading
            assert isinstance(await running.last(), Finished)
            assert model.status == "ready"

    run(scenario())


def test_a_neuron_that_ends_while_a_model_does_leaves_no_process():
    async def scenario():
        async with owning() as model:
            await load(model)
            unloading = asyncio.create_task(model.unload())
            await asyncio.sleep(0)  # it lasts some 20 ms, and a look each 10 may come too late
            assert model.status == "unloading"
        unloading.cancel()

    run(scenario())


def test_a_restart_can_be_unloaded():
    async def scenario():
        async with owning(backoff=Backoff(60.0, 60.0)) as model:
            await load(model)
            os.kill(model.ranks()[0].pid, signal.SIGKILL)
            await until(lambda: model.status == "restarting")
            await model.unload()
            assert model.status == "unloaded"
            await load(model)

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


def test_cached_pages_are_told_and_forgotten_with_their_worker():
    async def scenario():
        async with owning() as model:
            assert model.page_hashes() == []
            await Client(model, 1, prompt=range(100)).last()
            await Client(model, 2, prompt=range(100)).last()
            state = model.state()
            assert len(model.page_hashes()) == state.pages_cached == 3
            assert (state.prompt_tokens, state.cached_tokens) == (200, 96)
            os.kill(model.ranks()[0].pid, signal.SIGKILL)
            await until(lambda: model.status == "restarting")
            assert model.page_hashes() == []
            await until(lambda: model.status == "ready")
            assert model.state().prompt_tokens == 0

    run(scenario())


def test_what_is_interrupted_goes_on_with_the_next_load_and_has_each_token_once():
    async def scenario():
        async with owning(step_seconds=0.005, answer=list(range(100)) * 3) as model:
            running = Client(model, 1, 200)
            await running.begun()
            model.tenant.interrupt()  # it need not leave
            assert model.status == "ready"
            model.tenant.give_way()
            assert (model.status, model.requests.quiet) == ("draining", False)
            model.tenant.interrupt()
            assert (model.status, running.generation.phase) == ("unloading", "waiting")
            assert model.tenant.waits_since == inf  # its answer has begun
            before = time.monotonic()
            new = Client(model, 2)
            assert before <= model.tenant.waits_since <= time.monotonic()
            assert model.tenant.refuse(time.monotonic(), CortexError(Code.INSUFFICIENT_MEMORY, "no turn"))
            assert (await new.last()).message == "no turn"
            finished = await running.last()
            assert finished.usage.completion_tokens == 200
            told = "".join(reply.text for reply in running.replies if isinstance(reply, Delta))
            assert told.split() == [str(number % 100) for number in range(200)]
            assert (model.state().epoch, model.state().restarts) == (2, 0)

    run(scenario())


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
