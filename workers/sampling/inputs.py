"""Small tensors of a step's settings, on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ipc.worker_messages import SamplingParams
from workers.sampling.uniform import uniform


def sent(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """The values on the device, which nobody waits for.

    `torch.tensor(values, device="cuda")` returns when they are there, behind all that was sent before; this
    returns as soon as the driver has taken them.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def fetched(x: Tensor) -> Callable[[], list[float]]:
    """What gives the numbers of a vector, which are on their way: it waits for them and for nothing later."""
    if x.device.type == "cpu":
        values = x.tolist()
        return lambda: values
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def numbers() -> list[float]:
        there.synchronize()
        return host.tolist()

    return numbers


class Wishes(NamedTuple):
    """How each row of logits is drawn from, `[rows, 1]` float64 each."""

    temperature: Tensor
    top_k: Tensor  # the size of the vocabulary, if there is none
    top_p: Tensor
    min_p: Tensor
    point: Tensor  # in [0, 1): where on the line of probabilities

    @classmethod
    def of(cls, values: Tensor) -> Wishes:
        """Of the five columns, one after the other."""
        return cls(*values.view(5, -1, 1))


def wish(params: SamplingParams, length: int, vocabulary: int) -> tuple[float, float, float, float, float]:
    """What a row of `Wishes` has for a sequence of so many tokens; of one that is greedy little counts."""
    if not params.temperature:
        return 0.0, 0.0, 1.0, 0.0, 0.0
    top_k = min(params.top_k or vocabulary, vocabulary)
    return params.temperature, top_k, params.top_p, params.min_p, uniform(params.seed, length)
