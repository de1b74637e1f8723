"""Memory of the host's that a GPU reaches by itself, in the order of its other work."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor


def lock(memory: Tensor, device: torch.device) -> int:
    """Have the system leave it where it is. torch's own locked memory comes in powers of two alone.

    Returns:
        0, or CUDA's number of why that cannot be.
    """
    failed = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if failed:
        with suppress(RuntimeError):  # torch raises at the next launch what CUDA holds from the last call
            torch.ones(1, device=device)
    return failed


def unlock(memory: Tensor, device: torch.device) -> None:
    """Give it back once the device makes no use of it any more."""
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
