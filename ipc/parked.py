"""Weights of one rank in memory without a name: who loads them fills it, its supervisor keeps it, and the
next worker of the model reads it.

A head says what is there; it is written last, so that memory that was filled in part has none.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ipc.sealed import SEALS

HEAD = 4096  # bytes; tensors begin after it
DIGEST = 32  # bytes, of what stands where
_MAGIC = b"cxpark1\n"
_FORMAT = struct.Struct(f"<8sQ{DIGEST}s")  # then the size of all, in bytes


def create(name: str) -> int:
    """A descriptor of empty memory; the caller closes it.

    Args:
        name: for whoever looks at the descriptors of this process.
    """
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def sign(fd: int, digest: bytes) -> None:
    """All of it is there."""
    os.pwrite(fd, _FORMAT.pack(_MAGIC, os.fstat(fd).st_size, digest), 0)


def digest_of(fd: int) -> bytes | None:
    """What it was signed with; None: it is not whole."""
    head = os.pread(fd, _FORMAT.size, 0)
    if len(head) < _FORMAT.size:
        return None
    magic, size, digest = _FORMAT.unpack(head)
    return digest if magic == _MAGIC and size == os.fstat(fd).st_size else None


def seal(fd: int) -> int:
    """See that nobody changes it any more; its size in bytes."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return os.fstat(fd).st_size
