"""A text process: renders and tokenises for a neuron, and whatever becomes of it, the neuron goes on.

    python -m neuron.preparation.child FD PARENT_PID MEMORY LOG_LEVEL

FD is its end of a socket pair. What others wrote runs here without their looking on: the chat template of a
checkpoint, the regular expressions of its tokenizer, the requests of strangers. The kernel bounds its memory,
its neuron the time of each job.
"""

from __future__ import annotations

import re
import resource
import socket
import sys
from pathlib import Path

import msgspec

from ipc.lifeline import die_with_parent
from ipc.messages.replies import Failed
from neuron.preparation.jobs import Fronts, Job, Outcome, perform
from neuron.preparation.wire import receive, send
from neuron.trace import log_to_stderr

KEPT = 1 << 30  # bytes; a process that once held more of them ends after its job


def main() -> None:
    """Do one job after the other, until the neuron hangs up."""
    fd, parent, memory, level = sys.argv[1:]
    die_with_parent(int(parent))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log_to_stderr(level)
    fronts = Fronts()
    with socket.socket(fileno=int(fd)) as connection:
        while (asked := receive(connection)) is not None:
            outcome, result = _do(*asked, fronts, int(memory))
            del asked
            send(connection, msgspec.msgpack.encode(outcome), result)
            if outcome.leaves:
                return


def _do(header: bytearray, body: bytearray, fronts: Fronts, memory: int) -> tuple[Outcome, bytes]:
    job = msgspec.msgpack.decode(header, type=Job)
    try:
        error, result = perform(job, body, fronts)
    except MemoryError:
        return Outcome(Failed.of(0, job.too_much(f"{memory >> 20} MiB")), leaves=True), b""
    return Outcome(error, leaves=most_held() > KEPT), result


def most_held() -> int:
    """Bytes that this program has held at most. `getrusage` would add its parent, whose peak `exec` keeps."""
    return int(re.search(rb"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_bytes())[1]) << 10


if __name__ == "__main__":
    main()
