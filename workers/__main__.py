"""`python -m workers --control-fd N --supervisor-pid N`: a worker, started by a neuron and by nobody else."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from types import FrameType

from ipc.control import Control
from ipc.lifeline import die_with_parent
from workers.process.life import live


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers", description="One rank of one model.")
    parser.add_argument("--control-fd", type=int, required=True, help="inherited end of an ipc.control line")
    parser.add_argument("--supervisor-pid", type=int, required=True, help="it dies with that one")
    arguments = parser.parse_args()
    die_with_parent(arguments.supervisor_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor, and it decides
    signal.signal(signal.SIGTERM, leave)
    with Control.attach(arguments.control_fd) as control:
        return live(control)


def end(code: int) -> None:
    """End this process. To take torch apart first would take 0.4 s, which an unload would wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave(signum: int, frame: FrameType | None) -> None:
    """End cleanly: SystemExit passes every `except Exception` and runs every `finally`."""
    sys.exit(0)


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as left:
        code = left.code
    end(code)
