"""Whether kernels are launched before the one before them has ended: where a card has just done it right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from workers.execution.graphs import CudaGraphs, GraphDevice
from workers.kernels import launch

LAUNCHES = 64  # of the trial, each of which counts on from what the one before it wrote
WIDTH = 4096  # counts

logger = logging.getLogger("workers.execution.dependent_launches")


def try_dependent_launches(
    device: torch.device,
    chain: Callable[[torch.device, int], Tensor] | None = None,
    record: Callable[[torch.device], GraphDevice] = CudaGraphs,
) -> None:
    """Have no launch depend where that is refused, cannot be recorded, or leads to something else.

    Drivers before CUDA 12.3 record no such launch, and a step that cannot be recorded costs far more than
    dependent launches bring.

    Args:
        chain: `LAUNCHES` launches, each of which adds 1 to what the one before it came to, from a number on.
        record: makes what records them.
    """
    if launch.capability_of(device) < launch.DEPENDENT:
        return
    chain, recorder, fault = chain or _sums, None, ""
    launch.dependent = False
    try:
        chain(device, 128)  # whose counts are none of those that follow, wherever they are left
    except Exception:  # kernels cannot be built or run, and each load says why
        return
    launch.dependent = True
    try:
        at_once, recorder = chain(device, 0), record(device)
        replay, replayed = recorder.capture(partial(chain, device, 1))
        replay()
        if not (bool((at_once == LAUNCHES).all()) and bool((replayed == LAUNCHES + 1).all())):
            fault = "what came of a trial is wrong"
    except Exception as error:  # whatever it is: it works without
        fault = str(error).partition("\n")[0]
    finally:
        if recorder is not None:
            recorder.release()
    if fault:
        launch.dependent = False
        logger.warning("kernels are launched one after the other device=%s reason=%s", device, fault)


def _sums(device: torch.device, begin: int) -> Tensor:  # [1, WIDTH] bfloat16, which counts to 256
    from workers.kernels.norm_triton import norm_of_sum

    total, one = (torch.full((1, WIDTH), x, dtype=torch.bfloat16, device=device) for x in (begin, 1))
    for _ in range(LAUNCHES):
        total, _ = norm_of_sum(total, one, one[0], 1e-6, 0.0)
    return total
