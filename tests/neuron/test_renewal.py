"""Other settings for a model that is there already: what waits for them, and what does not."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import replace

import msgspec
import pytest

import neuron.tenancy.renewal
from ipc.errors import Code, CortexError
from ipc.messages.replies import TERMINAL, Failed, Finished
from neuron.config import ModelSettings
from tests.neuron.doubles import TEXT
from tests.neuron.harness import PATIENCE, until
from tests.neuron.owned_model import Client, OneRoom, load, owning, run

OTHER_TEXT = msgspec.structs.replace(TEXT, tokenizer="another")


def renew(model, **settings):
    """Have it served otherwise; `text` stands for the files of its tokenizer."""
    text = settings.pop("text", TEXT)
    settings = msgspec.structs.replace(model.wanted, **settings)
    context_length = settings.context_length or 1000
    model.renew(settings, replace(model.description, context_length=context_length, text=text))


def test_a_model_that_is_not_loaded_takes_them_at_once():
    async def scenario():
        async with owning() as model:
            renew(model, context_length=50, max_sequences=2)
            assert model.context_length == 50
            assert model.requests.max_sequences == 2
            await load(model)
            assert model.state().epoch == 1

    run(scenario())


def test_an_idle_model_is_loaded_again_and_a_busy_one_once_it_is_idle():
    async def scenario():
        async with owning(step_seconds=0.005) as model:
            await load(model)
            renew(model, context_length=50)
            await until(lambda: model.status == "ready" and model.state().epoch == 2)
            running = await Client(model, 1, 100).begun()
            renew(model, context_length=60)
            assert (model.settings.context_length, model.wanted.context_length) == (50, 60)
            assert isinstance(await running.last(), Finished)
            await until(lambda: model.status == "ready" and model.state().epoch == 3)
            assert model.settings == ModelSettings(id="sim", context_length=60)

    run(scenario())


def test_what_is_taken_back_before_it_counted_costs_no_load():
    async def scenario():
        async with owning(step_seconds=0.01) as model:
            running = await Client(model, 1, 100).begun()
            renew(model, context_length=50)
            renew(model, context_length=None, priority=7)
            assert isinstance(await running.last(), Finished)
            assert (model.status, model.state().epoch, model.state().priority) == ("ready", 1, 7)

    run(scenario())


def test_a_model_that_is_never_idle_leaves_in_the_end_and_who_waits_then_is_served(monkeypatch):
    monkeypatch.setattr(neuron.tenancy.renewal, "OUTDATED_SECONDS", 0.05)

    async def scenario():
        async with owning(step_seconds=0.01) as model:
            running = await Client(model, 1, 100).begun()
            renew(model, context_length=50)
            await until(lambda: model.status == "draining")
            waiting = Client(model, 2)
            assert isinstance(await running.last(), Finished)
            assert isinstance(await waiting.last(), Finished)
            assert (model.settings.context_length, model.state().epoch) == (50, 2)

    run(scenario())


def test_a_prompt_that_another_tokenizer_read_is_not_given_to_the_new_model(monkeypatch):
    monkeypatch.setattr(neuron.tenancy.renewal, "OUTDATED_SECONDS", 0.05)

    async def scenario():
        dropped = []
        async with owning(step_seconds=0.01, texts_dropped=dropped) as model:
            running = await Client(model, 1, 100).begun()
            before = await model.text()
            renew(model, path="/another", text=OTHER_TEXT)
            await until(lambda: model.status == "draining")
            assert dropped == [], "what runs is read by it"
            failed = await Client(model, 2).last()
            assert (failed.code, failed.retry_after) == (Code.SHUTTING_DOWN, 1.0)  # which gateways try again
            assert isinstance(await running.last(), Finished)
            await until(lambda: model.status == "ready")
            assert dropped == [before]
            assert await model.text() is not before
            model.drop_text()
            await until(lambda: len(dropped) == 2)

    run(scenario())


def test_a_text_that_is_still_read_when_the_model_goes_is_dropped_once_it_is_there():
    async def scenario():
        dropped = []
        async with owning(texts_dropped=dropped) as model:
            reading = asyncio.create_task(model.text())
            await asyncio.sleep(0)
            model.drop_text()
            assert dropped == []
            text = await reading
            await until(lambda: dropped == [text])
            assert model.text_now is None

    run(scenario())


def test_a_model_that_retires_finishes_what_it_has_and_one_that_nobody_uses_leaves_at_once():
    async def scenario():
        async with owning(step_seconds=0.01) as model:
            running = await Client(model, 1, 100).begun()
            model.retire()
            assert model.status == "ready"
            assert isinstance(await running.last(), Finished)
            await until(lambda: not model.in_use)
            model.bring_up()
            await until(lambda: not model.in_use)

    run(scenario())


@pytest.mark.parametrize("before", [{"keep_alive": -1.0}, {"pin": True}])
def test_an_idle_model_that_need_stay_no_longer_leaves_as_the_new_settings_say(before):
    async def scenario():
        async with owning(settings=before) as model:
            await load(model)
            renew(model, keep_alive=0.05, pin=False)
            await until(lambda: model.status == "unloaded")

    run(scenario())


def test_an_idle_model_that_is_pinned_by_new_settings_stays():
    async def scenario():
        async with owning(settings={"keep_alive": 1.0}) as model:
            await load(model)
            renew(model, pin=True)
            await asyncio.sleep(1.2)
            assert (model.status, model.state().epoch) == ("ready", 1)

    run(scenario())


def test_a_wish_for_memory_of_a_model_that_is_pinned_no_longer_is_taken_back():
    async def scenario():
        class Full(OneRoom):
            async def take(self, *args, **kwargs):
                await asyncio.sleep(PATIENCE)

        async with owning(Full(), settings={"pin": True}) as model:
            model.bring_up()
            await asyncio.sleep(0)
            assert model.status == "waiting"
            renew(model, pin=False)
            await until(lambda: model.status == "unloaded")

    run(scenario())


def test_a_pinned_model_that_retires_does_not_come_back():
    async def scenario():
        async with owning(settings={"pin": True}) as model:
            await load(model)
            model.retire()
            await until(lambda: not model.in_use)
            await asyncio.sleep(0.05)
            assert (model.status, model.state().epoch) == ("unloaded", 1)

    run(scenario())


def test_a_load_of_a_model_that_retires_ends_and_the_model_leaves():
    async def scenario():
        async with owning() as model:
            await load(model)
            unloading = asyncio.create_task(model.unload())
            await asyncio.sleep(0)  # it lasts some 20 ms, and a look each 10 may come too late
            assert model.status == "unloading"
            loading = asyncio.create_task(load(model))
            await asyncio.sleep(0)
            model.retire()
            with pytest.raises(CortexError, match="no longer served"):
                await loading
            await unloading
            await until(lambda: not model.in_use)

    run(scenario())


def test_a_model_that_retires_and_whose_worker_dies_with_its_last_request_leaves():
    async def scenario():
        tasks = asyncio.all_tasks()
        async with owning() as model:
            client = Client(model, 1, max_tokens=2000)
            await until(lambda: model.status == "ready" and len(client.replies) > 3)
            client.generation.request.replicated = (
                True  # it goes on elsewhere, and does not wait for a restart
            )
            model.retire()
            os.kill(model.ranks()[0].pid, signal.SIGKILL)
            assert (await client.last()).code == Code.WORKER_DIED
            await until(lambda: not model.in_use and asyncio.all_tasks() == tasks)
            assert (model.status, model.error) == ("unloaded", None)

    run(scenario())


def test_a_model_that_retires_leaves_though_a_request_that_was_on_its_way_comes_to_nothing():
    async def scenario():
        async with owning() as model:
            await load(model)
            with model.expecting():
                model.retire()
                assert model.status == "ready"
            await until(lambda: not model.in_use)

    run(scenario())


@pytest.mark.parametrize("seed", range(2))
def test_whatever_comes_in_whatever_order_each_request_ends_and_the_last_settings_count(seed, monkeypatch):
    monkeypatch.setattr(neuron.tenancy.renewal, "OUTDATED_SECONDS", 0.1)
    draw = random.Random(seed)

    async def scenario():
        async with owning(step_seconds=0.002) as model:
            clients = []
            for key in range(1, 25):
                what = draw.choice(("ask", "ask", "renew", "live", "leave", "unload"))
                if what == "ask":
                    clients.append(Client(model, key, draw.randint(1, 60)))
                elif what == "renew":
                    renew(model, context_length=draw.randint(100, 500), text=draw.choice((TEXT, OTHER_TEXT)))
                elif what == "live":
                    renew(model, priority=draw.randint(0, 9), text=model.description.text)
                elif what == "leave":
                    model.tenant.give_way()
                else:
                    unloading = asyncio.create_task(model.unload(force=draw.random() < 0.5))
                    unloading.add_done_callback(lambda done: done.cancelled() or done.exception())
                await asyncio.sleep(draw.random() * 0.1)
            for client in clients:
                assert isinstance(await client.last(), Finished | Failed)
                assert sum(type(reply) in TERMINAL for reply in client.replies) == 1
            wanted = model.wanted
            await until(lambda: model.settings == wanted and model.status in ("ready", "unloaded"))
            await load(model)
            assert model.settings == wanted
            assert isinstance(await Client(model, 100).last(), Finished)

    run(scenario())
