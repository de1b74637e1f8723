"""Neurons on paper, as the router knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.fleet import router
from ipc.messages.state import Device, ModelState
from tests.doubles import stands_for


@stands_for(router.Host)
@dataclass(eq=False)
class Host:
    name: str
    models: dict[str, ModelState] = field(default_factory=dict)
    healthy: bool = True
    heard: bool = True
    draining: bool = False
    devices: list[Device] = field(default_factory=list)
    in_flight: dict[str, int] = field(default_factory=dict)
    shaky: bool = False

    def is_shaky(self, model: str) -> bool:
        return self.shaky


def host(name: str, status: str = "ready", *, running: int = 0, gpu: int = 0, left=None, **fields) -> Host:
    """A host with the model "m" in that state."""
    devices = [Device(id="cuda:0", kind="cuda", name="", memory_total=gpu, memory_free=gpu)]
    models = {"m": ModelState(id="m", status=status, running=running, seconds_left=left)}
    return Host(name, models, devices=devices, **fields)
