"""What a client waits while another process sends something dear."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
        held: CPU time that the loop of whoever answers had within one such time at most, in seconds.
        seconds: until the dear thing was answered.
        outcome: what became of that.
    """

    said: str
    longest: float
    held: float
    seconds: float
    outcome: str


def longest_wait(module: str, kind: str, to: object, ask: Callable[[], object], pid: int) -> Wait:
    """Have another process send what is dear, and `ask` all the while.

    Args:
        module: run with `--send KIND TO`; it calls `prepared`, sends, and prints in a line what became of it.
        pid: the process that answers `ask`, whose loop is in its first thread.
    """
    command = [sys.executable, "-m", module, "--send", kind, str(to)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        said = other.stdout.readline().strip()
        outcome: list[str] = []
        reader = Thread(target=lambda: outcome.append(other.stdout.readline().strip()))
        reader.start()
        started, longest, held = time.perf_counter(), 0.0, 0.0
        other.stdin.write("\n")
        other.stdin.flush()
        while reader.is_alive():
            asked, spent = time.perf_counter(), _spent(pid)
            ask()
            longest = max(longest, time.perf_counter() - asked)
            held = max(held, _spent(pid) - spent)
            time.sleep(0.001)
        return Wait(said, longest, held, time.perf_counter() - started, outcome[0])


def _spent(pid: int) -> float:
    """Seconds of CPU time that the first thread of a process has had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
