"""Small tensors of a step's settings, on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """The values on the device, which nobody waits for.

    `torch.tensor(values, device="cuda")` returns when they are there, behind all that was sent before; this
    returns as soon as the driver has taken them.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
