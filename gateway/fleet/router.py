"""Which neuron gets a request: a pure function of what is known of the fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from gateway.http.errors import shown
from ipc.errors import Code, CortexError
from ipc.messages import Device, ModelState

KNOWN_IDS_SHOWN = 10

# Lower is better. A model that failed to load is tried again, where nobody else has it.
_READY, _COMING, _LOADABLE, _FAILED = range(4)
_RANKS = {
    "ready": _READY,
    "restarting": _COMING,
    "loading": _COMING,
    "waiting": _COMING,
    "draining": _LOADABLE,
    "unloaded": _LOADABLE,
    "unloading": _LOADABLE,
    "failed": _FAILED,
}


class Host(Protocol):
    """What placement must know of a neuron."""

    name: str
    healthy: bool  # it answers
    draining: bool
    models: Mapping[str, ModelState]  # as it said last
    devices: Sequence[Device]
    in_flight: Mapping[str, int]  # our own requests, by model


H = TypeVar("H", bound=Host)


def choose(hosts: Sequence[H], model: str) -> H:
    """The neuron for a request to `model`.

    The least loaded of those that have it ready; else one that is loading it already (a second copy elsewhere
    would take longer); else the one with the most memory to load it into.

    Raises:
        CortexError: MODEL_NOT_FOUND when no neuron knows it; NEURON_LOST or DRAINING when those that do are
            away for now.
    """
    knowing = [host for host in hosts if model in host.models]
    answering = [host for host in knowing if host.healthy]
    able = [host for host in answering if not host.draining]
    if able:
        return min(able, key=lambda host: _cost(host, model)) if len(able) > 1 else able[0]
    if answering:
        names = ", ".join(host.name for host in answering)
        raise CortexError(Code.DRAINING, f"the neuron {names}, which has the model {model!r}, is draining")
    if knowing:
        names = ", ".join(host.name for host in knowing)
        raise CortexError(
            Code.NEURON_LOST, f"the neuron {names}, which has the model {model!r}, does not answer"
        )
    raise _unknown(hosts, model)


def _cost(host: Host, model: str) -> tuple[int, int, int, int, str]:
    """The least of these is best: state, load, free memory of GPUs, of CPUs, and the name for good order."""
    state = host.models[model]
    rank = _RANKS[state.status]
    if rank >= _LOADABLE:
        return rank, 0, -_free(host, "cuda"), -_free(host, "cpu"), host.name
    # The neuron's numbers are up to a tenth of a second old; our own tell a burst apart at once.
    load = state.running + state.waiting + host.in_flight.get(model, 0)
    return rank, load, 0, 0, host.name


def _free(host: Host, kind: str) -> int:
    return sum(device.memory_free for device in host.devices if device.kind == kind)


def _unknown(hosts: Sequence[Host], model: str) -> CortexError:
    silent = [host.name for host in hosts if not host.healthy]
    if len(silent) == len(hosts):
        return CortexError(Code.NEURON_LOST, f"no neuron answers ({', '.join(silent)})")
    known = sorted({name for host in hosts if host.healthy for name in host.models})
    some = ", ".join(known[:KNOWN_IDS_SHOWN]) + (", …" if len(known) > KNOWN_IDS_SHOWN else "")
    text = f"the model {shown(model)} does not exist; there is {some or 'none'}"
    if silent:
        text += f" (of the neuron {', '.join(silent)} nothing is known: it does not answer)"
    return CortexError(Code.MODEL_NOT_FOUND, text, param="model")
