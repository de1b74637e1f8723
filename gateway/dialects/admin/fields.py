"""Bodies of requests that change the fleet."""

from __future__ import annotations

from msgspec import Struct

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


class NeuronFields(Struct, forbid_unknown_fields=True, kw_only=True):
    neuron: ShortName
    model: ShortName | None = None  # only that model, there
