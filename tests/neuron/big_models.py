"""Simulated models that do not all fit on one device, and what became of them."""

from ipc.messages.requests import Load
from tests.neuron.harness import PATIENCE, simulated

LIMIT = {"memory": "4GiB"}


def big(model_id, memory="2.5GiB", load_seconds=0.0, **settings):
    plan = {"memory": memory, "step_seconds": 0.005, "load_seconds": load_seconds}
    return simulated(model_id, **plan, settings=settings)


def load(client, model):
    return client.ask(Load(id=0, model=model), PATIENCE)


def status(neuron):
    return {state.id: state.status for state in neuron.health().models if state.id != "demo"}
