"""What a client waits while another process sends something dear."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple


def prepared(said: object) -> None:
    """In the other process: say that all is ready, and wait to be told to send it."""
    print(said, flush=True)
    sys.stdin.readline()


class Wait(NamedTuple):
    """What `longest_wait` measured.

    Attributes:
        said: what the other process said when all was ready.
        longest: time that an answer took at most, in seconds. On a busy machine some of that is others'.
        seconds: until the dear thing was answered.
        outcome: what became of that.
    """

    said: str
    longest: float
    seconds: float
    outcome: str


def longest_wait(module: str, kind: str, to: object, ask: Callable[[], object]) -> Wait:
    """Have another process send what is dear, and `ask` all the while.

    Args:
        module: run with `--send KIND TO`; it calls `prepared`, sends, and prints in a line what became of it.
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
        return Wait(said, longest, time.perf_counter() - started, outcome[0])
