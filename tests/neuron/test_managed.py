"""The life of one model: loads, requests, unloads and ends."""

import asyncio
import os
import signal
import time
from math import inf

import pytest

import neuron.models.managed
from ipc.errors import Code, CortexError
from ipc.messages.replies import Cancelled, Delta, Finished, Progress, Started
from neuron.admission.service_rate import SHORTEST
from neuron.config import NeuronConfig, Queue
from neuron.processes.backoff import Backoff
from tests.neuron.harness import children_of, until
from tests.neuron.owned_model import Client, OneRoom, load, owning, run


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
