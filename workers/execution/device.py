"""What a rank has to know of its device, whatever it computes there."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from ipc.errors import Code, CortexError
from ipc.worker_messages import WorkerSpec
from workers.checkpoints.computing import missing_type
from workers.kernels.dense import X86

THREAD_BYTES = 32 << 20  # weights that a further CPU thread is worth: less, and it waits longer than it works
LACK_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "CUDA error: out of memory",  # and on a GPU, of pinned memory or an event
    "[CUDA]: out of memory",  # Triton
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def num_threads(spec: WorkerSpec, weights: int) -> int:
    """CPU threads that compute, for so many bytes of weights."""
    return min(spec.threads, 1 + weights // THREAD_BYTES)


def check_type(capability: tuple[int, int], spec: WorkerSpec) -> None:
    """See that a GPU has instructions for the model's type.

    Raises:
        CortexError: MODEL_LOAD_FAILED, saying which types it has.
    """
    if missing := missing_type(spec.dtype, spec.device, capability):
        raise CortexError(Code.MODEL_LOAD_FAILED, f"{missing}, for {spec.model}")


def check_builds(device: str) -> None:
    """See that Triton can build here what starts its kernels, as it does when a GPU meets the first of them.

    Raises:
        CortexError: MODEL_LOAD_FAILED, saying what is missing.
    """
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), None)
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [] if compiler else ["C compiler"]
    missing += [] if headers.exists() else [f"Python's headers ({headers})"]
    if missing:
        raise CortexError(
            Code.MODEL_LOAD_FAILED,
            f"{device} computes with kernels that Triton builds, and there is no {' and no '.join(missing)}. "
            "On Debian: apt install gcc python3-dev",
        )


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Neither the CPU's allocator has an exception of its own, nor has who asks a GPU's driver without
    torch's: Triton for a kernel, cuBLAS for what it works in."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in LACK_OF_MEMORY)


def tune_cpu(dtype: torch.dtype) -> None:
    """Settings of this process that products on a CPU are right and fast with; before the first of them."""
    # Allowed to make bfloat16 of it, torch has oneDNN multiply float32, in half of what MKL takes on a Zen 5.
    # Where there is AMX it would be rounded indeed, which routers and states do not bear; on ARM it may be.
    rounds = not X86 or torch.cpu._is_amx_tile_supported()
    allowed = dtype == torch.bfloat16 and not rounds
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if allowed else "ieee"
