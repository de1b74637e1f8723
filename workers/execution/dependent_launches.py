"""Whether kernels are launched before the one before them has ended: where a card has just done it right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from workers.execution.graphs import CudaGraphs, GraphDevice

LAUNCHES = 64  # of the trial, each of which reads what the one before it wrote
WIDTH = 4096  # numbers that they pass on

logger = logging.getLogger("workers.execution.dependent_launches")


def try_dependent_launches(
    device: torch.device,
    chain: Callable[[torch.device], Tensor] | None = None,
    record: Callable[[torch.device], GraphDevice] = CudaGraphs,
) -> None:
    """Have no launch depend where that is refused, cannot be recorded, or leads to something else.

    Drivers before CUDA 12.3 record no such launch, and a step that cannot be recorded costs far more than
    dependent launches bring.

    Args:
        chain: launches of which each needs the one before.
        record: makes what records them.
    """
    from workers.kernels import launch

    if launch.capability_of(device) < launch.DEPENDENT:
        return
    chain, fault = chain or _norms, ""
    launch.dependent = False
    try:
        expected = chain(device)
    except Exception:  # no kernel can be built, and each load says why
        return
    launch.dependent = True
    try:
        launched, recorder = chain(device), record(device)
        replay, replayed = recorder.capture(partial(chain, device))
        replay()
        if not torch.equal(launched, expected) or not torch.equal(replayed, expected):
            fault = "what came of a trial is wrong"
        recorder.release()
    except RuntimeError as error:
        fault = str(error).partition("\n")[0]
    if fault:
        launch.dependent = False
        logger.warning("kernels are launched one after the other device=%s reason=%s", device, fault)


def _norms(device: torch.device) -> Tensor:
    from workers.kernels.norm_triton import norm

    y = x = torch.linspace(-2, 3, WIDTH, device=device).to(torch.bfloat16)[None]
    weight = torch.linspace(0.5, 1.5, WIDTH, device=device).to(torch.bfloat16)
    for _ in range(LAUNCHES):
        y = norm(y, weight, 1e-6, 0.0, x)
    return y
