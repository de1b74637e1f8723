"""Run in a process of its own, with TRITON_INTERPRET=1: states as GPUs compute them, on the CPU."""

from __future__ import annotations

import json

from tests.workers.interpreter import patch_once, take_arrays_for_numbers


def main() -> None:
    from tests.workers.state_steps import SHAPES, errors
    from workers.kernels import gated_delta_chunks_triton

    gated_delta_chunks_triton.CHUNKS = 3  # so that sequences are cut by launches, too
    print(json.dumps([errors("cpu", shape) for shape in SHAPES]))


if __name__ == "__main__":
    take_arrays_for_numbers()
    patch_once()
    main()
