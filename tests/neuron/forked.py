"""Neurons as forks of one process that has imported what each of them needs, which is most of a start.

    python -m tests.neuron.forked FD

is that process, and runs no threads. Down FD, one end of a SOCK_SEQPACKET pair, come `Start`s, each with two
descriptors: the neuron's log, and where a process that waits for it says its number and then its exit code.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock

import msgspec

ROOT = Path(__file__).parents[2]
LONGEST = 1 << 17  # bytes of a message
START_SECONDS = 150.0

_starting = Lock()


class Start(msgspec.Struct):
    config_file: str
    environment: dict[str, str]


class Forked:
    """A neuron, with as much of `subprocess.Popen` as tests need.

    Args:
        config_file: its only argument.
        log: open for writing: its standard error.
    """

    def __init__(self, config_file: Path, log: int) -> None:
        self.returncode: int | None = None
        self._said, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start = msgspec.msgpack.encode(Start(str(config_file), dict(os.environ)))
        with theirs, _starting:
            socket.send_fds(_mother(), [start], [log, theirs.fileno()])
        self._said.settimeout(START_SECONDS)
        number = self._said.recv(LONGEST)
        assert number, "the process that neurons are forks of is gone"
        self.pid = int(number)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._said.settimeout(timeout)
            try:
                self.returncode = int(self._said.recv(LONGEST))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a neuron", timeout) from None
            self._said.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended in this moment
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _mother() -> socket.socket:
    """The line to the process that neurons are forks of. It ends when nobody holds this end any more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        fd = theirs.fileno()
        command = [sys.executable, "-m", "tests.neuron.forked", str(fd)]
        one = os.environ | {"OMP_NUM_THREADS": "1"}  # of numpy's threads
        subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=[fd], env=one)
    return ours


def main() -> None:
    gc.disable()  # as `neuron serve` does
    import_module("neuron.daemon")
    import_module("tests.neuron.harness")
    import_module("ipc.structs").learn_structs()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody is waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has none of its mother's threads"
    orders = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, (*fds,), _, _ = socket.recv_fds(orders, LONGEST, 2)
        if not message:
            return
        start = msgspec.msgpack.decode(message, type=Start)
        if os.fork() == 0:
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            watch(start, *fds)
        for fd in fds:
            os.close(fd)


def watch(start: Start, log: int, said: int) -> None:
    """Start a neuron, and say how it ended."""
    pid = os.fork()
    if pid == 0:
        os.close(said)
        be(start, log)
    os.close(log)
    os.write(said, str(pid).encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.write(said, str(code).encode())
    finally:  # or nobody wants to know
        os._exit(0)


def be(start: Start, log: int) -> None:
    """Be the neuron."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(start.environment)
    code = 1
    try:
        code = import_module("tests.neuron.harness").serve(start.config_file)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
