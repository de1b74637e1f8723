"""Whether some neuron can serve a model, and what to say where none can. Pure functions of what is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from gateway.fleet.router import H, Host
from gateway.refusals import shown
from ipc.errors import Code, CortexError
from ipc.messages.replies import Quoted

KNOWN_IDS_SHOWN = 10
REFUSALS_SHOWN = 4
RETRY_SECONDS = 2.0  # a neuron that is away may be back by then


def able(hosts: Sequence[H], model: str) -> list[H]:
    """The neurons that have a model and take requests.

    Returns:
        [] when none that answers says that it has it.

    Raises:
        CortexError: DRAINING or NEURON_LOST when those that have it are away for now.
    """
    knowing = [host for host in hosts if model in host.models and not host.models[model].retired]
    answering = [host for host in knowing if host.healthy]
    takes = [host for host in answering if not host.draining and not host.models[model].drained]
    if takes or not knowing:
        return takes
    names = ", ".join(host.name for host in answering or knowing)
    if answering:
        text = f"{model!r} is being drained on the neuron {names}, which has it, until `cortex resume`"
        raise CortexError(Code.DRAINING, text)
    raise CortexError(
        Code.NEURON_LOST,
        f"the neuron {names}, which has the model {model!r}, does not answer",
        retry_after=RETRY_SECONDS,
    )


def anything(model: str) -> bool:
    """What `may_use` is of those who may use every model."""
    return True


def absent(hosts: Sequence[Host], model: str, may_use: Callable[[str], bool] = anything) -> CortexError:
    """What to say of a model that no neuron has that answers; it is unknown only once all have been heard.

    Args:
        may_use: whether who asks may know of a model.
    """
    if not any(host.healthy for host in hosts):
        names = ", ".join(host.name for host in hosts)
        return CortexError(Code.NEURON_LOST, f"no neuron answers ({names})", retry_after=RETRY_SECONDS)
    listed = [item for host in hosts if host.healthy for item in host.models.items() if may_use(item[0])]
    known = sorted({name for name, state in listed if not state.retired})
    some = ", ".join(known[:KNOWN_IDS_SHOWN]) + (", …" if len(known) > KNOWN_IDS_SHOWN else "") or "none"
    if silent := ", ".join(host.name for host in hosts if not host.heard):
        return CortexError(
            Code.NEURON_LOST,
            f"the neuron {silent} has not said yet what it has, and may have the model {shown(model)}; "
            + ("no other can serve it" if model in known else f"of the others there is {some}"),
            retry_after=RETRY_SECONDS,
        )
    text = _without_adapter(hosts, model, may_use)
    if not text:
        ends = any(name == model for name, _ in listed)  # what it has begun, where it was taken out
        what = "is no longer served" if ends else "does not exist"
        text = f"the model {shown(model)} {what}; there is {some}"
    return CortexError(Code.MODEL_NOT_FOUND, text, param="model")


def _without_adapter(hosts: Sequence[Host], name: str, may_use: Callable[[str], bool]) -> str:
    """What to say of a name such as BASE:ADAPTER where only the base is known; "": neither is."""
    base, _, adapter = name.rpartition(":")
    states = [host.models[base] for host in hosts if host.healthy and base in host.models]
    having = [state for state in states if not state.retired]
    if not having or not may_use(base):
        return ""
    there = sorted({each for state in having for each in state.adapters if may_use(f"{base}:{each}")})
    why = next((f" ({state.error})" for state in having if state.status == "failed" and state.error), "")
    return (
        f"the model {shown(base)} has no adapter {shown(adapter)}; it has {', '.join(there) or 'none'}{why}"
    )


def unservable(
    model: str, quotes: Mapping[str, Quoted | CortexError], elsewhere: Collection[str] = ()
) -> CortexError:
    """What to say of a model that the catalogue has and none of these hosts can serve.

    Args:
        elsewhere: hosts that go by the catalogue of another gateway.
    """
    refusals = {name: each for name, each in quotes.items() if isinstance(each, CortexError)}
    for name in elsewhere:
        text = "it goes by the catalogue of another gateway, whose file is newer"
        refusals[name] = CortexError(Code.MODEL_NOT_FOUND, text)
    text = f"the catalogue has the model {shown(model)}, and no neuron can serve it ({_told(refusals)})"
    return CortexError(Code.MODEL_NOT_FOUND, text, param="model")


def too_large(model: str, refusals: Mapping[str, CortexError]) -> CortexError:
    """What to say of a model for which no neuron that has it has the memory.

    Args:
        refusals: of all that have it, by name.
    """
    large = {name: each for name, each in sorted(refusals.items()) if each.code == Code.MODEL_TOO_LARGE}
    text = f"no neuron has the memory that the model {shown(model)} needs ({_told(large)})"
    details = {name: each.details for name, each in large.items()}
    return CortexError(Code.MODEL_TOO_LARGE, text, param="model", details=details)


def _told(refusals: Mapping[str, CortexError]) -> str:
    told = [f"{name}: {each.message}" for name, each in refusals.items()]
    return "; ".join(told[:REFUSALS_SHOWN]) + ("; …" if len(told) > REFUSALS_SHOWN else "")
