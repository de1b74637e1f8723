"""In a process that interprets: states as GPUs compute them, on the CPU."""

from __future__ import annotations

import pytest


def errors() -> list[list[float]]:
    """Of each shape, how far they are from those of torch."""
    from tests.workers import state_steps
    from workers.kernels import gated_delta_chunks_triton

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated_delta_chunks_triton, "CHUNKS", 3)  # so that sequences are cut by launches, too
        return [state_steps.errors("cpu", shape) for shape in state_steps.SHAPES]
