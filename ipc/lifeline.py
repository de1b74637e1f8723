"""A child that does not outlive its parent, however the parent ends.

`python -m ipc.lifeline PARENT_PID MODULE ARGUMENT...` becomes `python -m MODULE ARGUMENT...` on a lifeline,
for modules that know nothing of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process (SIGKILL) when its parent ends; leave at once if it already has.

    The kernel means the parent's *thread*: a child started from a pool's thread would die with that thread,
    so processes are started from the main thread.

    Args:
        parent_pid: the parent as it called itself, which tells an early death from a parent that is there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])  # the kernel keeps the lifeline
