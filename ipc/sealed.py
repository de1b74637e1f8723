"""A piece of data that one process hands to others as a descriptor: sealed, so that nobody changes it."""

from __future__ import annotations

import fcntl
import os

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def seal(name: str, data: bytes) -> int:
    """A descriptor of memory that holds `data`; the caller closes it.

    Args:
        name: for whoever looks at the descriptors of this process.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def unseal(fd: int) -> bytes:
    """What `fd` holds, which stays open."""
    return os.pread(fd, os.fstat(fd).st_size, 0)
