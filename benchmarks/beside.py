"""What a client waits while another process sends something dear."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread


def prepared(said: object) -> None:
    """In the other process: say that all is ready, and wait to be told to send it."""
    print(said, flush=True)
    sys.stdin.readline()


def longest_wait(
    module: str, kind: str, to: object, ask: Callable[[], object]
) -> tuple[str, float, float, str]:
    """Have another process send what is dear, and `ask` all the while.

    Args:
        module: run with `--send KIND TO`; it calls `prepared`, sends, and prints in a line what became of it.

    Returns:
        What it said when all was ready, the longest time that `ask` took, seconds until the dear thing was
        answered, and what became of that.
    """
    command = [sys.executable, "-m", module, "--send", kind, str(to)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        said = other.stdout.readline().strip()
        outcome: list[str] = []
        reader = Thread(target=lambda: outcome.append(other.stdout.readline().strip()))
        reader.start()
        started, longest = time.perf_counter(), 0.0
        other.stdin.write("\n")
        other.stdin.flush()
        while reader.is_alive():
            asked = time.perf_counter()
            ask()
            longest = max(longest, time.perf_counter() - asked)
            time.sleep(0.001)
        return said, longest, time.perf_counter() - started, outcome[0]
