"""Bodies of requests that change the fleet."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from gateway.dialects.fields import ShortName


class ModelFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """A model, and the neuron that is meant; None: the best one, or all that have it."""

    model: ShortName
    neuron: ShortName | None = None


class LoadFields(ModelFields, forbid_unknown_fields=True, kw_only=True):
    keep_alive: float | str | None = None  # as in requests


class UnloadFields(ModelFields, forbid_unknown_fields=True, kw_only=True):
    force: bool = False  # end what runs, instead of waiting for it


class PinFields(ModelFields, forbid_unknown_fields=True, kw_only=True):
    pinned: bool = True


class LogsFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which lines are meant."""

    neuron: ShortName | None = None  # None: of all neurons
    request: ShortName | None = None  # only about the request of that id
    lines: Annotated[int, Meta(ge=0, le=5000)] = 100  # of the past, of each neuron
    follow: bool = False  # and what is written from now on


class NeuronFields(Struct, forbid_unknown_fields=True, kw_only=True):
    neuron: ShortName
    model: ShortName | None = None  # only that model, there
