"""The broadcast ring: every reader gets every record, and the slowest one holds the writer."""

import signal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.broadcast import BroadcastRing
from ipc.records import RingBroken, RingFull
from tests.ipc.broadcast_group import Group, own


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=100), st.integers(min_value=0, max_value=2)), max_size=150),
    st.integers(min_value=1, max_value=3),
)
def test_every_reader_sees_the_same_records_in_order(operations, readers):
    group = Group(readers, 128)
    written = []
    seen = [0] * readers
    for operation in operations:
        if isinstance(operation, int):
            reader = operation % readers
            record = group.readers[reader].read(0)
            assert record == (written[seen[reader]] if seen[reader] < len(written) else None)
            seen[reader] += record is not None
        else:
            unread = sum((len(record) + 15) // 8 * 8 for record in written[min(seen) :])
            if unread + (len(operation) + 15) // 8 * 8 <= 128:
                group.writer.write(operation, 0)
                written.append(operation)
            else:
                with pytest.raises(RingFull):
                    group.writer.write(operation, 0)
    group.close()


READER = """
import time
from ipc.broadcast import BroadcastRing
from ipc.worker_messages import BroadcastHandle
ring = BroadcastRing.attach_reader(msgspec.convert(argv[0], BroadcastHandle), argv[1])
for number in range(4000):
    if number % 1000 == 0 and argv[1] == 1:
        time.sleep(0.02)
    record = ring.read(20)
    if record != number.to_bytes(2, "little") * (number % 90):
        sys.exit(f"record {number} is {record!r}")
"""


def test_slow_readers_in_other_processes_miss_nothing(spawn):
    ring = BroadcastRing.create(3, 1024)
    children = [spawn(READER, ring.handle, i, fds=ring.fds) for i in range(3)]
    writer = BroadcastRing.attach_writer(own(ring.handle))
    for number in range(4000):
        writer.write(number.to_bytes(2, "little") * (number % 90), 20)
    assert [child.wait(20) for child in children] == [0, 0, 0]
    writer.close()
    ring.close()


def test_a_reader_that_died_ends_in_ring_full(spawn):
    ring = BroadcastRing.create(2, 1024)
    writer = BroadcastRing.attach_writer(own(ring.handle))
    alive = BroadcastRing.attach_reader(own(ring.handle), 0)
    child = spawn(READER, ring.handle, 1, fds=ring.fds)
    writer.write(b"", 20)
    child.send_signal(signal.SIGKILL)
    child.wait(20)

    def fill():
        for _ in range(1024):
            writer.write(b"x", 0.01)
            alive.read(0)

    with pytest.raises(RingFull):
        fill()
    for end in (ring, writer, alive):
        end.close()


def test_each_end_does_only_its_own_part():
    group = Group(1, 64)
    for end in (group.ring, group.readers[0]):
        with pytest.raises(TypeError, match="does not write"):
            end.write(b"x", 0)
    for end in (group.ring, group.writer):
        with pytest.raises(TypeError, match="does not read"):
            end.read(0)
    group.close()


def test_a_handle_for_another_number_of_readers_is_refused():
    ring = BroadcastRing.create(2)
    with pytest.raises(RingBroken):
        BroadcastRing.attach_writer(msgspec.structs.replace(ring.handle, data_fds=ring.handle.data_fds[:1]))
    ring.close()


@pytest.mark.usefixtures("no_descriptors_left")
def test_close_leaves_no_descriptor_and_may_come_twice():
    group = Group(3, 64)
    group.close()
    group.close()
