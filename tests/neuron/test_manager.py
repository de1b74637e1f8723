"""Several models on one device: what fits, who leaves for whom, and what a load holds."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.replies import Delta, Done, Finished
from ipc.messages.requests import Eviction, Hello, ListModels, Load, Pin, Quote, Unload
from neuron.catalogue.catalogue import DEMO_FOLDER
from tests.neuron.big_models import LIMIT, big, load, status
from tests.neuron.folders import write_checkpoint
from tests.neuron.harness import PATIENCE, Neuron, chat, simulated, wait_until

GIB = 1 << 30


def test_a_model_that_does_not_fit_makes_the_idle_one_leave(tmp_path):
    with Neuron(tmp_path, [big("a"), big("b")], cpu=LIMIT) as neuron, neuron.client() as client:
        load(client, "a")
        [a] = neuron.children()
        assert neuron.health().devices[0].memory_reserved == int(2.5 * GIB)
        assert isinstance(client.ask(chat("b"), PATIENCE), Finished)
        assert status(neuron) == {"a": "unloaded", "b": "ready"}
        assert a not in neuron.children()
        assert neuron.health().devices[0].memory_reserved == int(2.5 * GIB)


def test_the_least_recently_used_leaves(tmp_path):
    models = [big(name, "1.5GiB") for name in "abc"]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        client.ask(Hello(id=0, eviction=Eviction(strategy="lru")), PATIENCE)
        load(client, "a")
        load(client, "b")
        time.sleep(neuron.model("b").load_seconds)  # its residency, and more
        client.ask(chat("a"), PATIENCE)
        load(client, "c")
        assert status(neuron) == {"a": "ready", "b": "unloaded", "c": "ready"}


def test_the_gateway_s_strategy_decides_who_leaves(tmp_path):
    models = [big("low", "1.5GiB", priority=1), big("high", "1.5GiB", priority=200), big("new", "1.5GiB")]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        client.ask(Hello(id=0, eviction=Eviction(strategy="priority")), PATIENCE)
        load(client, "high")
        load(client, "low")
        load(client, "new")
        assert status(neuron) == {"low": "unloaded", "high": "ready", "new": "ready"}


def begin(client, model, tokens=30_000):
    """A stream that has had its first token."""
    stream = client.stream(chat(model, tokens), PATIENCE)
    while not isinstance(next(stream), Delta):
        pass
    return stream


def test_who_wants_the_memory_of_a_busy_model_waits_until_that_has_finished(tmp_path):
    models = [big("busy"), big("new")]
    with (
        Neuron(tmp_path, models, cpu=LIMIT, memory={"turn_seconds": 0}) as neuron,
        neuron.client() as client,
        neuron.client() as other,
    ):
        running = begin(other, "busy", 600)
        waiting = client.stream(chat("new", 5), PATIENCE)
        told = next(reply for reply in waiting if reply.position is not None)
        assert (told.stage, told.position) == ("queued", 1)
        assert "busy" in told.message
        neuron.wait_for("busy", status="draining")
        assert neuron.model("new").status == "waiting"
        assert isinstance(list(running)[-1], Finished)
        assert isinstance(list(waiting)[-1], Finished)
        assert status(neuron) == {"busy": "unloaded", "new": "ready"}


def test_a_wait_for_memory_is_bounded_and_the_holder_works_on(tmp_path):
    models = [big("busy"), big("new")]
    memory = {"turn_seconds": 600, "wait_seconds": 0.3}
    with (
        Neuron(tmp_path, models, cpu=LIMIT, memory=memory) as neuron,
        neuron.client() as client,
        neuron.client() as other,
    ):
        running = begin(other, "busy")
        with pytest.raises(CortexError, match="memory that busy had not finished with") as refused:
            load(client, "new")
        assert refused.value.code == Code.INSUFFICIENT_MEMORY
        assert refused.value.retry_after
        state = neuron.wait_for("new", status="unloaded")  # nothing is wrong with it
        assert "busy" in state.error
        neuron.wait_for("busy", status="ready")
        assert isinstance(client.ask(chat("busy", 5), PATIENCE), Finished)
        assert isinstance(next(running), Delta)
        running.close()


def test_a_wish_that_nobody_has_any_more_is_withdrawn_and_the_holder_takes_work_again(tmp_path):
    models = [big("busy"), big("new")]
    with (
        Neuron(tmp_path, models, cpu=LIMIT, memory={"turn_seconds": 0}) as neuron,
        neuron.client() as client,
        neuron.client() as other,
        neuron.client() as third,
    ):
        running = begin(other, "busy")
        waiting = client.stream(chat("new", 5), PATIENCE)
        next(waiting)
        neuron.wait_for("busy", status="draining")
        queued = third.stream(chat("busy", 5), PATIENCE)
        assert next(queued).stage == "queued"
        waiting.close()
        neuron.wait_for("new", status="unloaded")
        assert isinstance(list(queued)[-1], Finished)
        assert isinstance(next(running), Delta)
        assert neuron.model("busy").epoch == 1
        running.close()


def test_a_pinned_model_stays_and_the_refusal_says_so_at_once(tmp_path):
    models = [big("pinned", pin=True), big("new")]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        neuron.wait_for("pinned", status="ready")
        with pytest.raises(CortexError, match=r"pinned holds 2\.50 GiB on cpu and is pinned") as refused:
            load(client, "new")
        assert refused.value.code == Code.INSUFFICIENT_MEMORY


def test_two_models_that_fit_only_one_at_a_time_take_turns_under_steady_traffic(tmp_path):
    models = [big("a"), big("b")]
    memory = {"turn_seconds": 0.2, "wait_seconds": PATIENCE}
    with Neuron(tmp_path, models, cpu=LIMIT, memory=memory) as neuron, ThreadPoolExecutor() as threads:

        def keep_asking(model):
            """One answer after the other; the longest wait for one."""
            longest = 0.0
            with neuron.client() as client:
                while not enough.is_set():
                    began = time.monotonic()
                    assert isinstance(client.ask(chat(model, 20), PATIENCE), Finished)
                    longest = max(longest, time.monotonic() - began)
            return longest

        enough = threading.Event()
        users = [threads.submit(keep_asking, model) for model in "aaabbb"]
        wait_until(lambda: all(neuron.model(model).epoch > 1 for model in "ab"), "both to have turns")
        enough.set()
        assert max(user.result(PATIENCE) for user in users) < PATIENCE / 2


def test_a_model_that_never_fits_is_refused_and_nobody_leaves_for_it(tmp_path):
    with Neuron(tmp_path, [big("a"), big("huge", "64GiB")], cpu=LIMIT) as neuron, neuron.client() as client:
        load(client, "a")
        with pytest.raises(CortexError) as refused:
            load(client, "huge")
        assert refused.value.code == Code.MODEL_TOO_LARGE
        assert refused.value.retry_after is None
        assert "needs at least 64.00 GiB" in refused.value.message
        assert "with nothing else loaded there would be 4.00 GiB on cpu" in refused.value.message
        assert status(neuron) == {"a": "ready", "huge": "unloaded"}


def test_a_load_that_runs_out_of_memory_has_one_model_more_leave_and_tries_again(tmp_path):
    short = {"memory": "2GiB", "failure": {"out_of_memory_in_load": True, "epochs": 1}}
    models = [big("a", "0.5GiB"), big("b", "0.5GiB"), simulated("new", **short)]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        client.ask(Hello(id=0, eviction=Eviction(strategy="lru")), PATIENCE)
        load(client, "a")
        load(client, "b")
        time.sleep(neuron.model("b").load_seconds)  # its residency, and more
        load(client, "new")
        assert status(neuron) == {"a": "unloaded", "b": "ready", "new": "ready"}
        assert neuron.model("new").epoch == 2
        assert "making room model=new strategy=lru leave=a (" in neuron.log


def test_many_who_ask_for_one_model_get_one_load(tmp_path):
    with Neuron(tmp_path, [simulated("a", load_seconds=0.3)]) as neuron, ThreadPoolExecutor() as threads:

        def ask():
            with neuron.client() as client:
                return client.ask(chat("a", 2), PATIENCE)

        answers = [threads.submit(ask) for _ in range(5)]
        assert all(isinstance(answer.result(PATIENCE), Finished) for answer in answers)
        state = neuron.model("a")
        assert (state.epoch, state.finished) == (1, 5)


def test_loads_of_two_models_run_side_by_side(tmp_path):
    models = [simulated("a", load_seconds=1.0), simulated("b", load_seconds=1.0)]
    with Neuron(tmp_path, models) as neuron, neuron.client() as one, neuron.client() as two:
        first, second = (c.stream(Load(id=0, model=m), PATIENCE) for c, m in ((one, "a"), (two, "b")))
        next(first), next(second)
        assert status(neuron) == {"a": "loading", "b": "loading"}
        assert isinstance(list(first)[-1], Done)
        assert isinstance(list(second)[-1], Done)


def test_pinned_models_are_loaded_at_start_and_the_listener_is_there_before(tmp_path):
    model = simulated("a", load_seconds=1.0, settings={"pin": True})
    with Neuron(tmp_path, [model]) as neuron:
        assert neuron.model("a").status in ("unloaded", "waiting", "loading")
        assert neuron.wait_for("a", status="ready").pinned


def test_a_model_that_was_preloaded_and_left_is_loaded_again_once_it_is_pinned(tmp_path):
    with Neuron(tmp_path, [big("a", preload=True)], cpu=LIMIT) as neuron, neuron.client() as client:
        neuron.wait_for("a", status="ready")
        client.ask(Unload(id=0, model="a"), PATIENCE)
        neuron.wait_for("a", status="unloaded")
        assert isinstance(client.ask(Pin(id=0, model="a"), PATIENCE), Done)
        assert neuron.wait_for("a", status="ready").pinned


def listed(neuron):
    return {state.id for state in neuron.health().models}


def reserved(neuron):
    return sum(device.memory_reserved for device in neuron.health().devices)


def test_a_model_that_comes_while_the_neuron_runs_is_seen_and_one_that_goes_is_not(tmp_path):
    shelf = tmp_path / "models"
    with Neuron(tmp_path / "n", [], model_folders=[str(shelf)]) as neuron, neuron.client() as client:
        wait_until(lambda: "demo" in listed(neuron), "the first look")
        folder = write_checkpoint(shelf / "mine")
        assert quote(client, "mine").verdict in ("fits", "evicts", "refused")  # at once for who asks
        wait_until(lambda: "mine" in listed(neuron), "the folder to be seen")
        shutil.rmtree(folder)
        wait_until(lambda: "mine" not in listed(neuron), "the folder to be missed")
        with pytest.raises(CortexError) as refused:
            load(client, "mine")
        assert refused.value.code == Code.MODEL_NOT_FOUND


@pytest.mark.parametrize("own", [False, True], ids=["found", "configured"])
def test_a_loaded_model_whose_folder_is_deleted_finishes_what_runs_and_is_gone(tmp_path, own):
    shelf = tmp_path / "models"
    shutil.copytree(DEMO_FOLDER, shelf / "mine")
    configured = [{"id": "mine", "path": str(shelf / "mine")}] if own else []
    with (
        Neuron(tmp_path / "n", configured, model_folders=[str(shelf)], standby=False) as neuron,
        neuron.client() as client,
        neuron.client() as other,
    ):
        running = client.stream(chat("mine", 300, sampling={"ignore_eos": True}), PATIENCE)
        next(reply for reply in running if isinstance(reply, Delta))
        loaded = reserved(neuron)
        shutil.rmtree(shelf / "mine")
        assert isinstance(list(running)[-1], Finished)
        if own:  # whose user sees why
            wait_until(lambda: neuron.model("mine").status == "failed", "the folder to be missed")
        else:
            wait_until(lambda: "mine" not in listed(neuron), "the folder to be missed")
        assert reserved(neuron) < loaded
        with pytest.raises(CortexError) as refused:
            load(other, "mine")
        assert refused.value.code == Code.MODEL_NOT_FOUND


def test_a_model_that_is_being_copied_is_not_listed_before_it_is_whole(tmp_path):
    whole = write_checkpoint(tmp_path / "elsewhere", shards=2)
    shelf = tmp_path / "models"
    shelf.mkdir()
    with Neuron(tmp_path / "n", [], model_folders=[str(shelf)]) as neuron, neuron.client() as client:
        wait_until(lambda: "demo" in listed(neuron), "the first look")
        copy = shelf / "mine"
        copy.mkdir()
        *others, last = sorted(whole.iterdir(), key=lambda file: file.suffix == ".safetensors")
        for file in others:
            shutil.copy(file, copy)
        half = last.read_bytes()[:-100]
        (copy / last.name).write_bytes(half)
        client.ask(ListModels(id=0), PATIENCE)  # looks
        assert "mine" not in listed(neuron)
        with pytest.raises(CortexError, match=last.name):
            load(client, "mine")
        shutil.copy(last, copy)
        wait_until(lambda: "mine" in listed(neuron), "the copy to be seen")


def test_a_thousand_folders_are_listed_within_seconds(tmp_path):
    model = write_checkpoint(tmp_path / "one")
    shelf = tmp_path / "models"
    for number in range(1000):
        folder = shelf / f"m{number}"
        folder.mkdir(parents=True)
        for file in model.iterdir():
            os.link(file, folder / file.name)
    with Neuron(tmp_path / "n", [], model_folders=[str(shelf)]) as neuron:
        wait_until(lambda: len(listed(neuron)) == 1001, "all to be seen")


def quote(client, model):
    return client.ask(Quote(id=0, model=model), PATIENCE)


def test_a_quote_says_what_it_would_take_and_does_nothing(tmp_path):
    models = [big("a", load_seconds=0.1), big("b"), big("huge", "64GiB")]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client, neuron.client() as other:
        free = quote(client, "a")
        assert (free.verdict, free.evicts, free.bytes) == ("fits", [], int(2.5 * GIB))
        assert free.seconds is None  # nothing was measured yet
        load(client, "a")
        assert quote(client, "a").verdict == "ready"
        time.sleep(neuron.model("a").load_seconds)  # its residency, and more
        evicting = quote(client, "b")
        assert (evicting.verdict, evicting.evicts) == ("evicts", ["a"])
        assert evicting.seconds > 0.1  # at the rate of a
        stream = begin(other, "a")
        assert quote(client, "b").verdict == "waits"
        refused = quote(client, "huge")
        assert (refused.verdict, refused.code) == ("refused", Code.MODEL_TOO_LARGE)
        assert "64.00 GiB" in refused.message
        assert status(neuron) == {"a": "ready", "b": "unloaded", "huge": "unloaded"}
        assert neuron.model("a").load_seconds > 0.1
        with neuron.client() as waiting:
            asked = waiting.stream(chat("b"), PATIENCE)
            next(reply for reply in asked if reply.position is not None)  # in the line for memory
            assert quote(client, "b").verdict == "waits"
            asked.close()
        stream.close()
