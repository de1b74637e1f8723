"""A neuron whose own file changes while it serves: what changed counts, and nothing else is touched."""

from __future__ import annotations

import signal

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.replies import Delta, Done, Finished
from ipc.messages.requests import Drain, Load, Unload
from tests.neuron.harness import PATIENCE, Neuron, chat, simulated, wait_until


def slow(name, **settings):
    """A model of which an answer of 600 tokens takes three seconds."""
    return simulated(name, step_seconds=0.005, settings=settings)


@pytest.fixture
def neuron(tmp_path):
    with Neuron(tmp_path, [slow("same"), slow("changed"), slow("removed")], only_configured=True) as neuron:
        yield neuron


def load(neuron, *models):
    with neuron.client() as client:
        for model in models:
            client.ask(Load(id=0, model=model), PATIENCE)


def configure(neuron, *models, **config):
    """Change the file, and have it read at once."""
    neuron.configure([*models], only_configured=True, **config)
    neuron.process.send_signal(signal.SIGHUP)


def begin(client, model, tokens=600):
    """A stream that has begun."""
    replies = client.stream(chat(model, tokens, sampling={"ignore_eos": True}), PATIENCE)
    while not isinstance(next(replies), Delta):
        pass
    return replies


def ends(replies):
    *_, last = replies
    assert isinstance(last, Finished), last
    return last


def listed(neuron):
    return {state.id for state in neuron.health().models}


def test_a_change_touches_what_changed_and_nothing_else(neuron):
    load(neuron, "same")
    same = neuron.workers("same"), neuron.model("same").epoch
    with neuron.client() as client, neuron.client() as other:
        running, leaving = begin(client, "changed"), begin(other, "removed")
        old = neuron.workers("changed")
        configure(neuron, slow("same"), slow("changed", context_length=1000), slow("added", preload=True))
        neuron.wait_for("added", status="ready")  # loaded for its `preload`
        with neuron.client() as late, pytest.raises(CortexError) as refused:
            late.ask(chat("removed"), PATIENCE)
        assert (refused.value.code, refused.value.param) == (Code.MODEL_NOT_FOUND, "model")
        assert refused.value.message == "the model 'removed' is no longer served here; what it has begun ends"
        state = neuron.model("removed")
        assert (state.status, state.retired, state.running) == ("ready", True, 1)
        assert ends(running).usage.completion_tokens == 600  # in the workers that it began in
        assert ends(leaving).usage.completion_tokens == 600
    wait_until(lambda: "removed" not in listed(neuron), "a model to be gone")
    assert neuron.wait_for("changed", status="ready", context_length=1000).epoch == 2
    assert neuron.workers("changed") != old
    assert (neuron.workers("same"), neuron.model("same").epoch) == same


def test_a_model_that_was_removed_need_not_end_what_it_has_begun(neuron):
    with neuron.client() as client, neuron.client() as other:
        running = begin(client, "removed")
        configure(neuron, slow("same"))
        neuron.wait_for("removed", retired=True)
        assert isinstance(other.ask(Unload(id=0, model="removed", force=True), PATIENCE), Done)
        ended = list(running)[-1]
        assert (ended.code, ended.message) == (Code.SHUTTING_DOWN, "removed was unloaded by force")
    wait_until(lambda: "removed" not in listed(neuron), "a model to be gone")


def test_a_drained_model_that_is_removed_is_gone_and_serves_when_it_comes_back(neuron):
    with neuron.client() as client:
        client.ask(Drain(id=0, model="removed"), PATIENCE)
        configure(neuron, slow("same"))
        wait_until(lambda: "removed" not in listed(neuron), "a model to be gone")
        configure(neuron, slow("same"), slow("removed"))
        assert not neuron.wait_for("removed").drained
        assert isinstance(client.ask(chat("removed", 2, stream=False), PATIENCE), Finished)


def test_what_needs_no_other_load_counts_at_once(neuron):
    load(neuron, "changed")
    before = neuron.workers("changed")
    neuron.configure([slow("changed", priority=7, max_output=3, pin=True)])  # and no signal
    assert neuron.wait_for("changed", priority=7).pinned
    with neuron.client() as client:
        finished = client.ask(chat("changed", 500, stream=False, sampling={"ignore_eos": True}), PATIENCE)
    assert (finished.usage.completion_tokens, finished.choices[0].reason) == (3, "length")
    assert neuron.workers("changed") == before


def test_a_file_that_cannot_be_used_changes_nothing_and_is_told_of_once(neuron):
    load(neuron, "same")
    before = neuron.workers("same")
    configure(neuron, slow("same", ranks=0))
    wait_until(lambda: "models[0].ranks" in neuron.log, "its word on the file")
    assert neuron.workers("same") == before
    configure(neuron, slow("same"), name="other")
    wait_until(lambda: "counts from the next start keys=name" in neuron.log, "its word on the rest")
    wait_until(lambda: listed(neuron) == {"same"}, "the others to be gone")
    assert neuron.workers("same") == before
    assert neuron.log.count("models[0].ranks") == 1


def test_a_model_that_could_not_be_read_is_there_once_its_entry_is_right(neuron):
    configure(neuron, {"id": "late", "path": str(neuron.config_file)})
    assert "neuron.yaml" in neuron.wait_for("late", status="failed").error
    configure(neuron, slow("late"))
    assert neuron.wait_for("late", status="unloaded").error is None
