"""The catalogue of a gateway, as far as it is about one neuron, and what would become of its models there."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipc.messages.values import ModelId, Name, Plain
from ipc.model_settings import MAX_MODELS, ModelSettings


class FleetCatalogue(Plain):
    """What a gateway's file says of models, as far as it is about one neuron."""

    version: Name  # of what the file says: the same one says the same
    origin: Name  # the gateway's host and its file
    modified: float  # Unix time at which the file was written
    models: Annotated[list[ModelSettings], Meta(max_length=MAX_MODELS)] = []
    elsewhere: Annotated[
        dict[ModelId, list[str]], Meta(max_length=MAX_MODELS)
    ] = {}  # models that only these other neurons serve: names, or one text that says which those are


class Appraisal(Plain):
    """What would become of one model of a catalogue on one host.

    `fits`: it is there, and would fit if nothing else was loaded. `too_large`: it would not. `missing`: its
    files are not there. `broken`: they cannot be served like this. `refused`: the host or the catalogue says
    no. `own`: the neuron's own file has it, which counts. `pulled`: its files come when somebody asks for it.
    """

    model: str
    verdict: str
    message: str = ""
    path: str = ""  # of its files
    devices: list[str] = []  # that its ranks would be on
    bytes: int = 0  # that it would book
    context_length: int = 0
    context_wanted: int = 0  # what that would be with enough memory
