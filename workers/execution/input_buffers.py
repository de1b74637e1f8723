"""The inputs of a step, in one piece of memory that is there from the load on, and copied once a step."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import torch
from torch import Tensor


class InputBuffers:
    """Arrays of integers that always lie at the same addresses of the device.

    Where the device is a GPU they are written into pinned memory first, and one copy takes all of them there,
    as far as the step uses them: so those that may be long and seldom are come last.

    Args:
        sizes: the most elements of each array, by name, in the order in which they lie.

    Attributes:
        sizes: the same.
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        total = sum(sizes.values())
        on_cpu = device.type == "cpu"
        self.sizes = dict(sizes)
        self._host = torch.empty(total, dtype=torch.int64, pin_memory=not on_cpu)
        self._device = self._host if on_cpu else torch.empty(total, dtype=torch.int64, device=device)
        self._words = memoryview(self._host.numpy()).cast("B").cast("q")
        self._copied: torch.cuda.Event | None = None if on_cpu else torch.cuda.Event()

    def fill(self, arrays: Mapping[str, array[int]]) -> dict[str, Tensor]:
        """The arrays (`array("q")`) on the device, each as `[len] int64`; good until the next call.

        Raises:
            ValueError: one of them is longer than its place.
        """
        if self._copied is not None:
            self._copied.synchronize()  # the step before may still be reading what it copies
        tensors, start, used = {}, 0, 0
        for name, size in self.sizes.items():
            values = arrays[name]
            if len(values) > size:
                raise ValueError(f"{name} has {len(values)} elements, and there is room for {size}")
            if values:
                used = start + len(values)
                self._words[start:used] = memoryview(values)
            tensors[name] = self._device[start : start + len(values)]
            start += size
        if self._copied is not None:
            self._device[:used].copy_(self._host[:used], non_blocking=True)
            self._copied.record()
        return tensors


def decode_sizes(sizes: Mapping[str, int], max_step_tokens: int, rows: int) -> dict[str, int]:
    """Of a step that feeds one token of each of `rows` sequences at most, so that little has to be copied.

    What has an element for each token, and one more, is as short as that. What lists pages stays as it is.
    """
    short = {name: size for name, size in sizes.items() if size <= max_step_tokens + 1}
    return {"wishes": 5 * rows} | dict.fromkeys(short, rows + 1) | sizes | dict.fromkeys(short, rows + 1)
