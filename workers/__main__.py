"""`python -m workers --spec-fd N`: one rank of one model, started by a neuron and by nobody else."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from types import FrameType

import msgspec

from ipc.lifeline import die_with_parent
from ipc.worker_messages import WorkerSpec
from workers.rank import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers", description="One rank of one model.")
    parser.add_argument(
        "--spec-fd", type=int, required=True, help="inherited descriptor of a WorkerSpec as JSON"
    )
    spec = read_spec(parser.parse_args().spec_fd)
    die_with_parent(spec.supervisor_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor, and it decides
    signal.signal(signal.SIGTERM, leave)
    logging.basicConfig(
        level=spec.log_level,
        format=f"%(asctime)s %(levelname)s %(name)s rank={spec.rank} %(message)s",
    )
    return run(spec)


def read_spec(fd: int) -> WorkerSpec:
    """Read and close `fd`; `msgspec.MsgspecError` when it holds no valid spec."""
    with open(fd, "rb"):
        return msgspec.json.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=WorkerSpec)


def leave(signum: int, frame: FrameType | None) -> None:
    """End cleanly: SystemExit passes every `except Exception` and runs every `finally`."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
