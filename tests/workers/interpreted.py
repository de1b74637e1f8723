"""Kernels as Triton interprets them, on the CPU: one process for all of them, which says what it finds.

Triton decides when it is imported whether it interprets, and to import it takes longer than most findings.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from typing import Any, Self


class Interpreted:
    """The process: `with Interpreted() as found`, and `found("products", "errors")` is what that function of
    `tests.workers.interpreted_products` returns there."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.interpreted"],
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, module: str, function: str, *given: Any) -> Any:
        """What JSON makes of it.

        Raises:
            AssertionError: it failed there; or the process is gone, and its stderr says of what.
        """
        self._process.stdin.write(json.dumps([module, function, given]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that interprets has ended"
        found, fault = json.loads(line)
        assert fault is None, fault
        return found


def main() -> None:
    import torch

    from tests.workers.interpreter import patch_once, take_arrays_for_numbers
    from workers.kernels import fused

    assert fused.INTERPRETED, "TRITON_INTERPRET=1 is to be set"
    take_arrays_for_numbers()
    patch_once()
    for line in sys.stdin:
        module, function, given = json.loads(line)
        torch.manual_seed(0)
        try:
            finds = getattr(importlib.import_module(f"tests.workers.interpreted_{module}"), function)
            said = finds(*given), None
        except Exception:  # told to who asked
            said = None, traceback.format_exc()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
