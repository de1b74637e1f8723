"""The table of a model's life: each state with each event."""

import types
import typing

import pytest

from ipc.messages.state import ModelStatus
from neuron.models.life import TRANSITIONS, Event
from neuron.models.managed import ManagedModel

# The whole table, cell by cell: what a state becomes by each event; a dot: nothing happens.
LIVES = """
         unloaded waiting   loading   ready      draining  restarting unloading failed
WANTED   waiting  .         .         .          .         .          .         waiting
GRANTED  .        loading   .         .          .         .          .         .
SHORT    .        .         waiting   .          .         .          .         .
READY    .        .         ready     .          .         ready      .         .
REFUSED  .        unloaded  unloaded  .          .         .          .         .
FAILED   failed   failed    failed    .          .         failed     .         .
DIED     .        .         .         restarting unloading .          .         .
LEAVE    unloaded unloading unloading draining   .         unloading  .         unloaded
STAY     .        .         .         .          ready     .          .         .
QUIET    .        .         .         .          unloading .          .         .
GONE     .        .         .         .          .         .          unloaded  .
DESERTED .        unloading .         .          .         .          .         .
"""


def cells():
    """(state, event, what the table says)"""
    heads, *rows = (line.split() for line in LIVES.strip().splitlines())
    for event, *ends in rows:
        for state, end in zip(heads, ends, strict=True):
            yield state, Event[event], end


def test_the_table_has_every_state_and_event():
    states, events, _ = zip(*cells(), strict=True)
    assert set(states) == set(typing.get_args(ModelStatus)) == set(TRANSITIONS)
    assert set(events) == set(Event)


@pytest.mark.parametrize(("state", "event", "end"), list(cells()))
def test_each_event_in_each_state_leads_where_the_table_says(state, event, end):
    """With no action taken: what the actions do is held by the other tests."""
    model = types.SimpleNamespace(id="sim", status=state, error=None, _changed=lambda now: None)
    model._tenancy = types.SimpleNamespace(epochs=types.SimpleNamespace(number=0))
    done = []
    if (transition := TRANSITIONS[state].get(event)) is not None:
        action = f"_{transition[1]}"
        assert hasattr(ManagedModel, action)
        setattr(model, action, lambda error: done.append(model.status))
    ManagedModel.handle(model, event)
    assert model.status == (state if end == "." else end)
    assert done == ([] if end == "." else [end])
