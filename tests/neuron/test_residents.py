"""Models that are loaded though nobody asks: preloaded at the start, and the default when the host idles."""

import time

from ipc.messages.replies import Delta, Finished
from ipc.messages.requests import Drain, Load, Resume, Unload
from tests.neuron.big_models import LIMIT, big, load, status
from tests.neuron.harness import PATIENCE, Neuron, chat, simulated, wait_until


def test_a_preloaded_model_is_there_at_the_start_and_leaves_when_its_memory_is_wanted(tmp_path):
    models = [big("a", preload=True), big("b")]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        neuron.wait_for("a", status="ready")
        load(client, "b")
        assert status(neuron) == {"a": "unloaded", "b": "ready"}
        assert neuron.model("a").evictions == 1


def test_nobody_leaves_for_a_preload_and_the_log_says_why_it_is_not_there(tmp_path):
    models = [big("a", preload=True), big("b", preload=True), big("c", "1GiB", preload=True)]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron:
        neuron.wait_for("c", status="ready")
        assert status(neuron) == {"a": "ready", "b": "unloaded", "c": "ready"}
        assert "model is not preloaded model=b reason=a would have to leave" in neuron.log


def test_the_default_comes_back_when_what_it_left_for_is_idle(tmp_path):
    models = [big("home"), big("guest")]
    config = {"default_model": "home", "default_after_seconds": 1.0}
    with Neuron(tmp_path, models, cpu=LIMIT, **config) as neuron, neuron.client() as client:
        neuron.wait_for("home", status="ready")
        client.ask(chat("guest", 20), PATIENCE)
        left = time.monotonic()
        neuron.wait_for("home", status="ready")
        assert time.monotonic() - left >= 0.5  # it was idle from a little earlier on
        assert status(neuron) == {"home": "ready", "guest": "unloaded"}


def test_the_default_does_not_interrupt_whoever_works(tmp_path):
    models = [big("home"), big("guest")]
    config = {"default_model": "home", "default_after_seconds": 0.05}
    with Neuron(tmp_path, models, cpu=LIMIT, **config) as neuron, neuron.client() as client:
        neuron.wait_for("home", status="ready")
        client.ask(chat("guest", 100), PATIENCE)  # half a second
        neuron.wait_for("home", status="ready")
        assert (neuron.model("guest").finished, neuron.model("guest").failed) == (1, 0)
        assert neuron.model("guest").epoch == neuron.model("guest").evictions == 1


def test_a_default_that_is_drained_comes_back_when_it_takes_requests_again(tmp_path):
    models = [big("home"), big("guest")]
    config = {"default_model": "home", "default_after_seconds": 0.05}
    with Neuron(tmp_path, models, cpu=LIMIT, **config) as neuron, neuron.client() as client:
        neuron.wait_for("home", status="ready")
        client.ask(Drain(id=0, model="home"), PATIENCE)
        load(client, "guest")
        time.sleep(0.3)
        assert status(neuron) == {"home": "unloaded", "guest": "ready"}
        client.ask(Resume(id=0, model="home"), PATIENCE)
        neuron.wait_for("home", status="ready")


def test_a_default_that_its_user_unloads_stays_away(tmp_path):
    config = {"default_model": "home", "default_after_seconds": 0.05}
    with Neuron(tmp_path, [big("home")], cpu=LIMIT, **config) as neuron, neuron.client() as client:
        neuron.wait_for("home", status="ready")
        client.ask(Unload(id=0, model="home"), PATIENCE)
        time.sleep(0.3)
        assert status(neuron) == {"home": "unloaded"}


def test_a_default_that_is_not_here_is_said_and_the_neuron_serves(tmp_path):
    with Neuron(tmp_path, [big("a")], default_model="nowhere") as neuron, neuron.client() as client:
        wait_until(lambda: "default model cannot be used model=nowhere" in neuron.log, "the line in the log")
        client.ask(Load(id=0, model="a"), PATIENCE)


def test_nobody_leaves_for_a_pinned_model_that_failed_by_itself_and_it_comes_when_there_is_memory(tmp_path):
    broken = {"memory": "2.5GiB", "load_seconds": 0.3, "failure": {"fail_load": "a bad shard", "epochs": 2}}
    models = [big("a"), simulated("broken", **broken, settings={"pin": True})]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        neuron.wait_for("broken", status="failed")
        load(client, "a")  # though it may be tried again in this moment
        tries = neuron.wait_for("broken", status="failed").epoch
        time.sleep(0.5)  # ten of its pauses
        assert status(neuron) == {"a": "ready", "broken": "failed"}
        assert (neuron.model("broken").epoch, neuron.model("a").evictions) == (tries, 0)
        client.ask(Unload(id=0, model="a"), PATIENCE)
        assert neuron.wait_for("broken", status="ready").epoch == 3


def test_nobody_leaves_for_a_pinned_model_that_tries_again_and_finds_too_little_memory(tmp_path):
    short = {"memory": "2.5GiB", "failure": {"out_of_memory_in_load": True}}
    models = [simulated("home", **short, settings={"pin": True}), big("small", memory="256MiB")]
    with Neuron(tmp_path, models, cpu=LIMIT) as neuron, neuron.client() as client:
        wait_until(lambda: "model unloaded model=home" in neuron.log, "the end of its first try")
        load(client, "small")
        tries = neuron.model("home").epoch
        wait_until(lambda: neuron.model("home").epoch >= tries + 3, "its other tries")
        assert status(neuron)["small"] == "ready"
        assert neuron.model("small").evictions == 0


def test_nobody_leaves_again_for_a_default_that_runs_out_of_memory_as_it_comes_back(tmp_path):
    short = {"memory": "2.5GiB", "failure": {"out_of_memory_in_load": True}}
    config = {"default_model": "home", "default_after_seconds": 0.3}
    with (
        Neuron(tmp_path, [big("home"), big("guest")], cpu=LIMIT, **config) as neuron,
        neuron.client() as client,
    ):
        neuron.wait_for("home", status="ready")
        running = client.stream(chat("guest", 300), PATIENCE)
        next(reply for reply in running if isinstance(reply, Delta))
        neuron.configure([simulated("home", **short), big("guest")])
        wait_until(lambda: "model has other settings model=home" in neuron.log, "the reload")
        assert isinstance(list(running)[-1], Finished)
        wait_until(lambda: "load needs more memory model=home" in neuron.log, "the default to come back")
        neuron.wait_for("home", status="unloaded")
        left = neuron.model("guest").evictions
        load(client, "guest")
        time.sleep(1)  # three of its tries
        assert status(neuron) == {"home": "unloaded", "guest": "ready"}
        assert neuron.model("guest").evictions == left == 1
