"""`cortex top`: the fleet at work, again every second."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gateway.commands import remote, status
from gateway.commands.status import FleetHealth
from gateway.commands.tables import row, size, table

BAR = 20  # characters


class Rates:
    """What happened since the last look, a second."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[float, dict[str, int]]] = {}

    def since(self, key: tuple[str, str], now: float, counts: dict[str, int]) -> dict[str, float]:
        """By name; empty at the first look, and after a restart."""
        before = self._last.get(key)
        self._last[key] = now, counts
        if before is None or now <= before[0] or any(counts[name] < before[1][name] for name in counts):
            return {}
        return {name: (counts[name] - before[1][name]) / (now - before[0]) for name in counts}


def run(endpoint: str, seconds: float, console: Console) -> None:
    """Show it until Ctrl-C; where there is no screen, one picture below the other.

    Raises:
        Unreachable: the gateway does not answer the first time.
    """
    rates = Rates()
    fleet = status.read(remote.fetch(endpoint), endpoint)
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            picture = fleet if isinstance(fleet, Text) else frame(fleet, rates, time.monotonic())
            if console.is_terminal:
                live.update(picture, refresh=True)
            else:
                console.print(picture)
            time.sleep(seconds)
            try:
                fleet = status.read(remote.fetch(endpoint), endpoint)
            except remote.Unreachable as error:
                fleet = Text(str(error))


def frame(fleet: FleetHealth, rates: Rates, now: float) -> Group:
    """One picture."""
    devices = table("device", "memory", "", "load")
    models = table(
        "model", "neuron", "status", "running", "waiting", "requests/s", "prompt tokens/s", "steps/s"
    )
    for neuron in fleet.neurons:
        for device in neuron.devices:
            used = device.memory_total - device.memory_free
            share = used / device.memory_total if device.memory_total else 0.0
            load = "" if device.utilization is None else f"{device.utilization:.0%}"
            amount = f"{size(used)} of {size(device.memory_total)}"
            row(devices, f"{neuron.name} {device.id}", _bar(share), amount, load)
        for model in neuron.models:
            if model.status in ("unloaded", "failed") and not model.waiting:
                continue
            counts = {"finished": model.finished, "prompt": model.prompt_tokens, "steps": model.steps}
            rate = rates.since((neuron.name, model.id), now, counts)
            each = (f"{rate[name]:.1f}" if rate else "" for name in counts)
            row(models, model.id, neuron.name, model.status, str(model.running), str(model.waiting), *each)
    lost = [f"{neuron.name} is lost: {neuron.reason}" for neuron in fleet.neurons if not neuron.healthy]
    parts: list[Any] = [
        Text(f"fleet {fleet.status}", style="bold"),
        *map(Text, lost),
        Text(),
        devices,
        Text(),
    ]
    return Group(*parts, models if models.row_count else Text("no model is loaded"))


def _bar(share: float) -> str:
    full = round(min(max(share, 0.0), 1.0) * BAR)
    return "█" * full + "░" * (BAR - full)
