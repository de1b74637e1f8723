"""A broadcast ring with all its ends in one process."""

import os

import msgspec

from ipc.broadcast import BroadcastRing


def own(handle):
    """The handle with descriptors of its own: in one process, two objects must not close the same ones."""
    return msgspec.structs.replace(
        handle,
        memory_fd=os.dup(handle.memory_fd),
        data_fds=[os.dup(fd) for fd in handle.data_fds],
        space_fd=os.dup(handle.space_fd),
    )


class Group:
    """A ring with all its ends, in one process."""

    def __init__(self, readers, capacity):
        self.ring = BroadcastRing.create(readers, capacity)
        self.writer = BroadcastRing.attach_writer(own(self.ring.handle))
        self.readers = [BroadcastRing.attach_reader(own(self.ring.handle), i) for i in range(readers)]

    def close(self):
        for end in (self.ring, self.writer, *self.readers):
            end.close()
