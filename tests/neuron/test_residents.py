"""Models that are loaded though nobody asks: preloaded at the start, and the default when the host idles."""

import time

from ipc.messages.requests import Drain, Load, Resume, Unload
from tests.neuron.big_models import LIMIT, big, load, status
from tests.neuron.harness import PATIENCE, Neuron, chat, wait_until


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
