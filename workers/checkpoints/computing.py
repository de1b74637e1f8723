"""Which types a device computes in."""

from __future__ import annotations

from ipc.model_settings import Dtype

BFLOAT16_CAPABILITY = (8, 0)  # of the first GPUs that compute with it: Ampere


def missing_type(dtype: Dtype, device: str, capability: tuple[int, int]) -> str:
    """What is to be said of a GPU that has no instructions for the type of a model; nothing, where it has."""
    if dtype != "bfloat16" or capability >= BFLOAT16_CAPABILITY:
        return ""
    return (
        f"{device} has no bfloat16 (its compute capability is {capability[0]}.{capability[1]}, and that "
        "begins with 8.0): set `dtype: float16`, or `float32`"
    )
