"""The life of a worker process: wait, be a rank, give everything back, wait again.

A process that is started for a load differs from one that has waited for it (a standby) in nothing but the
moment at which its orders come. Whatever takes long before a load can begin (torch, the device's context)
is done when the first order names a transformer or asks for it with `WarmUp`.
"""

from __future__ import annotations

import gc
import os
from importlib import import_module

from ipc.control import Control, descriptors
from ipc.logs import log_to_stderr
from ipc.worker_messages import Footprint, Waiting, WorkerSpec
from workers.execution.memory import footprint, trim
from workers.process.rank import serve


def live(control: Control) -> int:
    """Do what comes down `control` until its other end closes.

    Returns:
        The exit code: 0, or 1 after a rank that failed. What such a rank leaves behind is nobody's baseline.

    Raises:
        ControlBroken: what came is no order.
    """
    baseline: Footprint | None = None
    loads = 0
    while (order := control.receive()) is not None:
        rank = isinstance(order, WorkerSpec)
        if baseline is None and not (rank and order.engine == "simulated"):
            warm_up(order.device)
            baseline = footprint(order.device)
        if rank:
            loads += 1
            if not be(order):
                return 1
        if baseline is not None:
            gc.unfreeze()
            trim(order.device)
            try:
                control.send(Waiting(loads=loads, held=footprint(order.device), baseline=baseline))
            except BrokenPipeError:  # nobody wants it back
                break
    return 0


def be(spec: WorkerSpec) -> bool:
    """Be the rank that `spec` describes, to its end; its descriptors are closed then.

    Returns:
        Whether it ended because it was told to.
    """
    text = f"%(asctime)s %(levelname)s %(name)s rank={spec.rank} %(message)s"
    log_to_stderr(spec.log_level, text, rank=spec.rank)
    try:
        return serve(spec)
    finally:
        for fd in descriptors(spec):
            if fd not in (spec.store_fd, spec.parking_fd):  # who has taken these closes them
                os.close(fd)


def warm_up(device: str) -> None:
    """Import all that a transformer needs, and make the context of its device."""
    import torch

    for runner in ("model_runner", "encoder_runner"):
        import_module(f"workers.execution.{runner}")
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.empty(1, device=device)
