"""How long a model stays loaded that nobody uses: as its settings say, or the last request."""

import asyncio

import pytest

from ipc.messages.replies import Finished
from neuron.config import NeuronConfig
from neuron.models.keep_alive import KeepAlive
from tests.neuron.harness import until
from tests.neuron.owned_model import Client, load, owning, run


def test_it_is_unloaded_when_nobody_used_it_for_so_long():
    async def scenario():
        async with owning(settings={"keep_alive": 0.3}) as model:
            assert isinstance(await Client(model, 1).last(), Finished)
            assert model.status == "ready"
            await until(lambda: model.status == "unloaded")
            assert model.state().evictions == 0  # nobody else wanted its memory

    run(scenario())


def test_what_was_loaded_and_never_used_is_unloaded_too():
    async def scenario():
        async with owning(config=NeuronConfig(keep_alive=0.05)) as model:
            await load(model)
            await until(lambda: model.status == "unloaded")

    run(scenario())


def test_the_last_request_decides_and_one_that_does_not_say_goes_by_the_settings():
    async def scenario():
        async with owning(settings={"keep_alive": 3600.0}) as model:
            await Client(model, 1, keep_alive=-1.0).last()
            assert model.state().keep_alive is None
            await Client(model, 2).last()
            assert model.state().keep_alive == 3600.0
            await Client(model, 3, keep_alive=0.0).last()
            await until(lambda: model.status == "unloaded")

    run(scenario())


def test_no_time_runs_while_a_request_does():
    async def scenario():
        async with owning(settings={"keep_alive": 0.02}, step_seconds=0.01) as model:
            assert isinstance(await Client(model, 1, max_tokens=40).last(), Finished)
            assert model.state().epoch == 1
            await until(lambda: model.status == "unloaded")
            assert model.state().finished == 1

    run(scenario())


def test_a_request_that_comes_while_it_ends_is_served_by_the_next_load():
    async def scenario():
        async with owning(settings={"keep_alive": 0.0}) as model:
            await Client(model, 1).last()
            await until(lambda: model.status in ("unloading", "unloaded"))
            assert isinstance(await Client(model, 2).last(), Finished)
            assert model.state().epoch == 2

    run(scenario())


def test_no_time_runs_while_a_request_is_prepared_and_it_leaves_where_that_comes_to_nothing(monkeypatch):
    async def scenario():
        async with owning() as model:
            await load(model)
            with model.expecting():
                await Client(model, 1, keep_alive=0.0).last()
                started = []
                monkeypatch.setattr(
                    KeepAlive, "start", lambda timer, start=KeepAlive.start: started.append(start(timer))
                )
                await asyncio.sleep(0.05)
                assert (model.status, started) == ("ready", [])
            await until(lambda: model.status == "unloaded")

    run(scenario())


@pytest.mark.parametrize("keep_alive", [0.0, 0.01])
def test_a_pinned_model_stays_whatever_a_request_says(keep_alive):
    async def scenario():
        async with owning(settings={"pin": True}) as model:
            await Client(model, 1, keep_alive=keep_alive).last()
            await asyncio.sleep(0.05)
            assert model.status == "ready"
            assert model.state().keep_alive is None

    run(scenario())
