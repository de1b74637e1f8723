"""The life of a worker process: wait, be a rank, give everything back, wait again.

A process that is started for a load differs from one that has waited for it (a standby) in nothing but the
moment at which its orders come. Whatever takes long before a load can begin (torch, the device's context)
is done when the first order names a transformer or asks for it with `WarmUp`.
"""

from __future__ import annotations

import gc
import os
from importlib import import_module
from importlib.util import find_spec

from ipc.control import Control, descriptors
from ipc.logs import log_to_stderr
from ipc.worker_messages import Footprint, Waiting, WorkerSpec
from workers.execution.memory import footprint, trim
from workers.process.rank import serve

RUNNERS = ("workers.execution.model_runner", "workers.execution.encoder_runner")
ON_GPUS = (  # what these import there when they first need it, and Triton with it
    "workers.attention.convolutions_cuda",
    "workers.attention.cuda",
    "workers.attention.spaces_cuda",
    "workers.attention.states_cuda",
    "workers.kernels.blocks_triton",
    "workers.kernels.choice_triton",
    "workers.kernels.chosen_triton",
    "workers.kernels.delta_gates_triton",
    "workers.kernels.experts_triton",
    "workers.kernels.gated_triton",
    "workers.kernels.grouped_triton",
    "workers.kernels.norm_triton",
    "workers.kernels.one_shot_triton",
    "workers.kernels.pairs_triton",
    "workers.kernels.latent_triton",
    "workers.kernels.router_triton",
    "workers.kernels.skinny",
)


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
            baseline = settled(order.device)
        if rank:
            loads += 1
            if not be(order):
                return 1
        if baseline is not None:
            try:
                control.send(Waiting(loads=loads, held=settled(order.device), baseline=baseline))
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
    gc.disable()  # nothing of what is imported is garbage, and to look for some takes half a second
    try:
        import torch

        for module in RUNNERS:
            import_module(module)
        if device == "cpu":
            return
        torch.cuda.set_device(device)
        if find_spec("triton") is not None:  # else a load that needs it says so
            for module in ON_GPUS:
                import_module(module)
    finally:
        gc.enable()
    a = torch.zeros(16, 16, dtype=torch.float16, device=device)
    torch.mm(a, a)  # cuBLAS, which takes a while to begin with
    if find_spec("triton") is not None:
        from workers.execution.dependent_launches import try_dependent_launches

        try_dependent_launches(torch.device(device))
    torch.cuda.synchronize(device)


def settled(device: str) -> Footprint:
    """What this process holds once it has given back what is free.

    What stays is no garbage: a load collects twice, and each time would walk through all that torch is made
    of, for 0.15 s.
    """
    gc.unfreeze()
    trim(device)
    gc.freeze()
    return footprint(device)
