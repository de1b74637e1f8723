"""Models are found one by one, and the host's memory is looked at, all the time: what goes wrong with one, or
once, costs no other."""

import asyncio
import shutil
import time
from contextlib import asynccontextmanager

import msgspec
import pytest

import neuron.catalogue.catalogue
import neuron.description
import neuron.models.finder
import neuron.models.manager
from ipc.errors import Code, CortexError
from neuron.catalogue.catalogue import Catalogue
from neuron.config import ModelSettings, NeuronConfig
from neuron.description import describe
from neuron.memory.devices import Inventory
from neuron.memory.parking import Parking
from neuron.models.life import Event
from neuron.models.managed import ManagedModel
from neuron.models.manager import ModelManager
from neuron.preparation.preparation import Preparation
from neuron.processes.backoff import Backoff
from tests.neuron.folders import write_checkpoint
from tests.neuron.harness import PATIENCE
from workers.checkpoints.reading import read_card


@asynccontextmanager
async def managing(folder, start=True, **settings):
    """All models in a folder, looked for without a pause."""
    config = NeuronConfig(
        devices=["cpu"],
        model_folders=[str(folder)],
        hf_cache=str(folder / "none"),
        standby=False,
        **settings,
    )
    preparation = Preparation("INFO")
    models = ModelManager(config, Inventory(config), lambda now=False: None, preparation)
    if start:
        await models.start()
    try:
        yield models
    finally:
        await models.close()
        await preparation.close()


def status(models):
    return {state.id: state.status for state in models.states() if state.id != "demo"}


async def until(condition):
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


def test_a_fault_of_ours_in_reading_one_model_is_its_own_failure(tmp_path, monkeypatch, caplog):
    for name in "abc":
        write_checkpoint(tmp_path / name)

    def faulty(settings, folder, card):
        if settings.id == "b":
            raise ZeroDivisionError("of b")
        return describe(settings, folder, card)

    async def scenario():
        async with managing(tmp_path) as models:
            assert status(models) == {"a": "unloaded", "c": "unloaded"}
            with pytest.raises(
                CortexError, match=rf"{tmp_path}/b cannot be inspected: .*of b; the log has"
            ) as error:
                await models.open("b")
            assert error.value.code == Code.MODEL_LOAD_FAILED

    monkeypatch.setattr(neuron.models.finder, "describe", faulty)
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert "model cannot be inspected model=b" in caplog.text


def test_each_of_many_models_is_read_once_and_known_before_the_last_one_is(tmp_path, monkeypatch):
    monkeypatch.setattr(neuron.models.finder, "READ_SECONDS", 0.0)
    names = [f"m{number}" for number in range(6)]
    for name in names:
        write_checkpoint(tmp_path / name)
    read, known = [], []

    def counted(path, **more):
        read.append(path.name)
        known.append(sorted(models.finder.known(name).id for name in names if models.finder.known(name)))
        return read_card(path, **more)

    async def scenario():
        nonlocal models
        async with managing(tmp_path, start=False) as models:
            await models.start()
            assert list(status(models)) == names
            await models.finder.find_all()

    models = None
    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", counted)
    monkeypatch.setattr(neuron.description, "read_card", counted)
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert read == ["demo", *names]
    assert known == [[], *(names[:number] for number in range(6))]


def test_what_simulated_models_have_of_another_one_is_read_once(tmp_path, monkeypatch):
    read = []

    def counted(path, **more):
        read.append(path.name)
        return read_card(path, **more)

    async def scenario():
        plans = [{"id": f"s{number}", "simulated": {}} for number in range(20)]
        async with managing(
            tmp_path, models=msgspec.convert(plans, list[ModelSettings]), only_configured=True
        ) as models:
            assert len(status(models)) == 20

    neuron.description._lent.cache_clear()
    monkeypatch.setattr(neuron.description, "read_card", counted)
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert read == ["demo"]


def test_a_pinned_model_that_failed_and_whose_files_change_is_loaded_anew_and_forgotten_as_it_was(
    tmp_path, monkeypatch
):
    called = []
    handle = ManagedModel.handle

    def counted(model, event, error=None):
        if event is Event.WANTED:
            called.append(model)
        handle(model, event, error)

    async def scenario():
        mine = ModelSettings(id="mine", path=str(write_checkpoint(tmp_path / "mine")), pin=True)
        (tmp_path / "mine" / "tokenizer.json").write_text("{}")
        async with managing(tmp_path / "none", models=[mine]) as models:
            await until(lambda: (old := models.known("mine")) is not None and old.status == "failed")
            old = models.known("mine")
            with (tmp_path / "mine" / "config.json").open("a") as config:
                config.write(" ")
            await until(lambda: models.known("mine") not in (None, old))
            tries = called.count(old)
            await until(
                lambda: called.count(models.known("mine")) > 1
            )  # it fails as well, and has its own pauses
            assert called.count(old) == tries

    monkeypatch.setattr(ManagedModel, "handle", counted)
    monkeypatch.setattr(neuron.models.manager, "Backoff", lambda: Backoff(0.3, 0.3))
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@pytest.mark.parametrize("fault", [RuntimeError("once"), OSError("once")])
def test_a_look_that_fails_is_followed_by_others(tmp_path, monkeypatch, caplog, fault):
    monkeypatch.setattr(neuron.models.finder, "SCAN_SECONDS", 0.0)
    monkeypatch.setattr(neuron.models.finder, "SCAN_SHARE", 0.1)
    scan, faults = Catalogue.scan, [fault, fault, fault]

    def faulty(self, seconds):
        if faults:
            raise faults.pop()
        return scan(self, seconds)

    async def scenario():
        async with managing(tmp_path) as models:
            assert models.searched
            await until(lambda: not faults)
            await asyncio.to_thread(write_checkpoint, tmp_path / "a")
            await until(lambda: status(models) == {"a": "unloaded"})

    monkeypatch.setattr(Catalogue, "scan", faulty)
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert caplog.text.count("models cannot be looked for") == 3


@pytest.mark.parametrize(
    ("looked", "worked", "seconds"),
    [(0.01, 0.01, 2.0), (0.05, 0.048, 6.0), (0.5, 0.04, 10.0), (60.0, 0.1, 30.0), (60.0, 60.0, 30.0)],
)
def test_looking_for_models_takes_less_than_a_hundredth_of_a_core(looked, worked, seconds):
    assert neuron.models.finder.pause(looked, worked) == pytest.approx(seconds)
    assert worked < seconds / 100 or seconds == neuron.models.finder.MOST_SCAN_SECONDS


def test_what_reading_new_models_takes_does_not_count_for_the_next_look(tmp_path, monkeypatch):
    now = [0.0]

    def slow(path):
        now[0] += 5.0
        return read_card(path)

    for name in "abc":
        write_checkpoint(tmp_path / name)
    monkeypatch.setattr(neuron.catalogue.catalogue, "monotonic", lambda: now[0])
    monkeypatch.setattr(neuron.catalogue.catalogue, "thread_time", lambda: now[0])
    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", slow)
    catalogue = Catalogue(NeuronConfig(model_folders=[str(tmp_path)], hf_cache=str(tmp_path / "none")))
    assert len(catalogue.scan()) == 4
    assert (now[0], catalogue.looked, catalogue.worked) == (20.0, 0.0, 0.0)


def test_a_model_that_took_long_to_inspect_is_forgotten_soon_after_it_went(tmp_path, monkeypatch):
    monkeypatch.setattr(neuron.models.finder, "SCAN_SECONDS", 0.0)
    monkeypatch.setattr(neuron.models.finder, "SCAN_SHARE", PATIENCE)

    def slow(settings, folder, card):
        time.sleep(1.0)
        return describe(settings, folder, card)

    async def scenario():
        async with managing(tmp_path) as models:
            await asyncio.to_thread(write_checkpoint, tmp_path / "a")
            await until(lambda: status(models) == {"a": "unloaded"})
            await asyncio.to_thread(shutil.rmtree, tmp_path / "a")
            await until(lambda: not status(models))

    monkeypatch.setattr(neuron.models.finder, "MOST_SCAN_SECONDS", 0.5)
    monkeypatch.setattr(neuron.models.finder, "describe", slow)
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@pytest.mark.parametrize(("parking", "looks"), [(1 << 20, 5), (0, 0)])
def test_the_host_s_memory_is_looked_at_again_after_a_fault_and_only_where_something_may_be_parked(
    tmp_path, monkeypatch, caplog, parking, looks
):
    monkeypatch.setattr(neuron.models.manager, "RELIEF_SECONDS", 0.0)
    seen = []

    def faulty(self):
        seen.append(self)
        if len(seen) <= 3:
            raise OSError("once")

    async def scenario():
        async with managing(tmp_path, parking=parking):
            for _ in range(50):
                await asyncio.sleep(0)

    monkeypatch.setattr(Parking, "relieve", faulty)
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert len(seen[:5]) == looks
    assert caplog.text.count("cannot be relieved") == min(looks, 3)
