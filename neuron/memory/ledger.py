"""Who holds how much memory on which device. The neuron alone decides what fits, and it decides here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ipc.errors import Code, CortexError
from ipc.messages.state import Device
from ipc.sizes import gib


class Ledger:
    """Bytes by device and model: promised before a load, corrected once they are measured.

    What other programs hold ("foreign") is what the driver or the kernel says is taken and no model accounts
    for. It is learned by `observe`, only while every promise on the device has been measured: a model that
    is half loaded would else be counted twice.

    Args:
        devices: all that may be booked, as they were before any model of ours was on them.

    Attributes:
        total: bytes of each device.
    """

    def __init__(self, devices: Iterable[Device]) -> None:
        self.total: dict[str, int] = {}
        self._foreign: dict[str, int] = {}
        self._booked: dict[str, dict[str, int]] = {}  # model -> device -> bytes
        self._unmeasured: set[tuple[str, str]] = set()  # (model, device)
        for device in devices:
            self.total[device.id] = device.memory_total
            self._foreign[device.id] = max(0, device.memory_total - device.memory_free)

    def reserve(self, model: str, amounts: Mapping[str, int]) -> None:
        """Book `amounts` (bytes by device) for `model`: all of them, or none.

        Raises:
            CortexError: INSUFFICIENT_MEMORY, saying for each device what is needed, free, and held by whom.
            ValueError: `model` has a booking already, or an amount is negative.
        """
        if model in self._booked:
            raise ValueError(f"{model} has a booking already")
        if any(amount < 0 for amount in amounts.values()):
            raise ValueError(f"a booking of {model} is negative: {dict(amounts)}")
        if not self.would_fit(amounts):
            raise self._refusal(model, amounts)
        self._booked[model] = dict(amounts)
        self._unmeasured.update((model, device) for device in amounts)

    def correct(self, model: str, device: str, measured: int) -> None:
        """Replace what was promised to `model` on `device` by what it holds: facts are not refused."""
        self._booked[model][device] = measured
        self._unmeasured.discard((model, device))

    def account(self, holder: str, device: str, measured: int) -> None:
        """Book what `holder` was measured to hold on `device`, who never asks whether it may; nothing where
        that is no device of this neuron."""
        if device in self.total:
            self._booked[holder] = {device: measured}

    def release(self, model: str) -> None:
        """End the booking of `model`, if there is one."""
        for device in self._booked.pop(model, {}):
            self._unmeasured.discard((model, device))

    def observe(self, devices: Iterable[Device], changing: Collection[str] = ()) -> None:
        """Learn from fresh figures of the devices how much other programs hold.

        Args:
            changing: devices of which nothing is learned, for what is booked there is just being changed.
        """
        in_motion = {device for _, device in self._unmeasured} | set(changing)
        for device in devices:
            if device.id in self.total and device.id not in in_motion:
                taken = self.total[device.id] - device.memory_free
                self._foreign[device.id] = max(0, taken - self.reserved(device.id))

    def would_fit(self, amounts: Mapping[str, int]) -> bool:
        """Whether `reserve` would take `amounts` now. A device that is not there has no room at all."""
        return all(device in self.total and amount <= self.free(device) for device, amount in amounts.items())

    def free(self, device: str) -> int:
        """Bytes on `device` that can be promised now, never below 0."""
        return max(0, self.total[device] - self._foreign[device] - self.reserved(device))

    def foreign(self, device: str) -> int:
        """Bytes on `device` that other programs hold, as far as it is known."""
        return self._foreign[device]

    def reserved(self, device: str) -> int:
        """Bytes on `device` that models hold or were promised."""
        return sum(amounts.get(device, 0) for amounts in self._booked.values())

    def held_by(self, model: str) -> dict[str, int]:
        """Bytes by device that `model` holds or was promised; empty when it has no booking."""
        return dict(self._booked.get(model, {}))

    @property
    def devices(self) -> list[str]:
        """All devices, in the order in which they were given."""
        return list(self.total)

    def _refusal(self, model: str, amounts: Mapping[str, int]) -> CortexError:
        shortages, details = [], {}
        for device, needed in amounts.items():
            if device not in self.total:
                shortages.append(
                    f"{device} is not a device of this neuron ({', '.join(self.total) or 'none'})"
                )
                continue
            held = {who: sizes[device] for who, sizes in self._booked.items() if sizes.get(device)}
            if self._foreign[device]:
                held["other programs"] = self._foreign[device]
            details[device] = {"needed": needed, "free": self.free(device), "held": held}
            if needed > self.free(device):
                holders = ", ".join(f"{who} {gib(size)}" for who, size in held.items())
                shortages.append(
                    f"{gib(needed)} are needed on {device} and {gib(self.free(device))} are free"
                    + (f" (held: {holders})" if held else "")
                )
        return CortexError(
            Code.INSUFFICIENT_MEMORY, f"{model} does not fit: {'; '.join(shortages)}", details=details
        )
