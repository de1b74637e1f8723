"""Whether this host can serve a model at all, by what its settings ask of devices."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ipc.messages.state import Device
from ipc.sizes import gib
from neuron.config import ModelSettings


class NotHere(Exception):
    """Why not, in words that go on after the model's name."""


def hosted(settings: ModelSettings, devices: Sequence[Device]) -> ModelSettings:
    """The settings with the devices that are left once those that are too small are left out.

    Args:
        devices: all of this host that a neuron may use.

    Raises:
        NotHere: there are too few, or they are too small.
    """
    there = {device.id: device for device in devices}
    usual = [device.id for device in devices if device.kind == "cuda"] or list(there)
    wanted = settings.devices or usual
    if missing := [name for name in wanted if name not in there]:
        raise NotHere(f"wants {', '.join(missing)}, and this host has {', '.join(there)}")
    floor = settings.min_device_memory
    large = [name for name in wanted if there[name].memory_total >= floor]
    on_cpu = large == ["cpu"]  # whose ranks share it
    if not large or (not on_cpu and len(large) < settings.ranks):
        needed = "a device" if settings.ranks == 1 else f"{settings.ranks} devices"
        least = f" of {gib(floor)}" if floor else ""
        raise NotHere(f"wants {needed}{least}, and this host has {_shown(devices)}")
    together = sum(sorted(there[name].memory_total for name in large)[-settings.ranks :])
    if together < settings.min_memory:
        raise NotHere(f"wants {gib(settings.min_memory)} of memory, and this host has {_shown(devices)}")
    return settings if large == wanted else replace(settings, devices=large)


def _shown(devices: Sequence[Device]) -> str:
    return ", ".join(f"{device.id} of {gib(device.memory_total)}" for device in devices)
