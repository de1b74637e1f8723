"""The ring: what is written is read, once, in order, unharmed, whatever happens to the other side."""

import asyncio
import errno
import os
import random
import resource
import select
import signal
from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import records
from ipc.broadcast import BroadcastRing
from ipc.memory import SharedMemory
from ipc.ring import Ring, RingBroken, RingFull
from ipc.worker_messages import RingHandle

ATTACH = """
from ipc import records
from ipc.ring import Ring
from ipc.worker_messages import RingHandle
rings = [Ring.attach(msgspec.convert(a, RingHandle)) for a in argv if isinstance(a, dict)]
"""


@pytest.fixture
def ring():
    ring = Ring.create(256)
    yield ring
    ring.close()


def taken(record):
    """Bytes that a record takes in the ring: a header of 8, and padding to 8."""
    return (len(record) + 15) // 8 * 8


OPERATIONS = st.lists(st.one_of(st.binary(max_size=300), st.sampled_from(["read", "read_all"])), max_size=200)


@settings(max_examples=300, deadline=None)
@given(operations=OPERATIONS, capacity=st.sampled_from([64, 128, 256]))
def test_any_interleaving_of_writes_and_reads_behaves_like_a_bounded_queue(operations, capacity):
    ring = Ring.create(capacity)
    model = deque()
    used = 0
    for operation in operations:
        if operation == "read":
            expected = model.popleft() if model else None
            assert ring.try_read() == expected
            used -= 0 if expected is None else taken(expected)
        elif operation == "read_all":
            assert ring.read_all() == list(model)
            model.clear()
            used = 0
        elif taken(operation) > capacity:
            with pytest.raises(ValueError, match="does not fit"):
                ring.try_write(operation)
        else:
            fits = used + taken(operation) <= capacity
            assert ring.try_write(operation) is fits
            if fits:
                model.append(operation)
                used += taken(operation)
        assert ring.unread == used
    ring.close()


def test_every_length_survives_at_every_offset(ring):
    for length in range(256 - 8 + 1):
        for _ in range(3):
            record = os.urandom(length)
            ring.write(record, 0)
            assert ring.try_read() == record


def test_sequence_numbers_go_on_beyond_32_bits(ring):
    ring._writer._sequence = ring._reader._sequence = (1 << 32) - 2
    for number in range(4):
        ring.write(b"%d" % number, 0)
    assert ring.read_all() == [b"0", b"1", b"2", b"3"]


def test_a_full_ring_raises_ring_full_and_loses_nothing(ring):
    ring.write(b"a" * 120, 0)
    ring.write(b"b" * 120, 0)
    assert ring.try_write(b"") is False
    with pytest.raises(RingFull):
        ring.write(b"c", 0.01)
    assert ring.read_all() == [b"a" * 120, b"b" * 120]
    ring.write(b"c", 0)
    assert ring.read(0) == b"c"


def test_records_may_be_read_so_many_bytes_at_a_time(ring):
    for number in range(8):
        ring.write(b"%d" % number * 8, 0)
    read = []
    while ring.arm():
        read.append(ring.read_all(32))
    assert [len(records) for records in read] == [2, 2, 2, 2]
    assert [record[:1] for records in read for record in records] == [b"%d" % number for number in range(8)]


def test_a_writer_is_told_of_room_only_where_it_asked_and_there_was_none(ring):
    record = bytes(100)
    while ring.try_write(record):
        pass
    ring.try_read()
    assert not select.select([ring.room_fileno()], [], [], 0)[0]
    assert ring.arm_room(record)  # there is some by now
    assert ring.try_write(record)
    assert not ring.arm_room(record)
    ring.try_read()
    assert select.select([ring.room_fileno()], [], [], 0)[0]
    ring.drain_room()
    assert not select.select([ring.room_fileno()], [], [], 0)[0]
    assert ring.try_write(record)


def test_reading_an_empty_ring_ends_after_its_timeout(ring):
    assert ring.read(0) is None
    assert ring.read(0.01) is None
    assert ring.try_read() is None
    assert ring.read_all() == []


def test_capacity_must_be_a_power_of_two():
    for capacity in (0, 32, 96, 1000):
        with pytest.raises(ValueError, match="power of two"):
            Ring.create(capacity)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        pytest.param(records.WRITTEN, 257 * 8, id="counter beyond the capacity"),
        pytest.param(records.WRITTEN, 8, id="counter inside the record"),
        pytest.param(records.WRITTEN, 17, id="counter not aligned"),
        pytest.param(records.data_offset(1) // 8, 1 << 32 | 9, id="sequence gap"),
        pytest.param(records.data_offset(1) // 8, 17, id="length beyond what was written"),
        pytest.param(records.data_offset(1) // 8, 0xFFFFFFFF, id="length beyond the ring"),
    ],
)
def test_a_reader_that_sees_the_impossible_says_broken_and_keeps_saying_so(ring, word, value):
    ring.write(b"123456789", 0)
    ring._memory.words[word] = value
    for read in (ring.try_read, ring.read_all, lambda: ring.read(0), ring.try_read):
        with pytest.raises(RingBroken):
            read()


def test_a_reader_notices_a_counter_that_went_back(ring):
    ring.write(b"123456789", 0)
    ring.read(0)
    ring._memory.words[records.WRITTEN] = 0
    with pytest.raises(RingBroken):
        ring.read(0.01)


@pytest.mark.parametrize("value", [1 << 20, 240 + 8])
def test_a_writer_notices_an_impossible_reader(ring, value):
    ring.write(b"x" * 200, 0)
    ring._memory.words[records.read_word(0)] = value
    with pytest.raises(RingBroken):
        ring.write(b"x" * 200, 0.01)


def test_what_is_no_ring_is_refused():
    memory = SharedMemory.create("test", 4096)
    with pytest.raises(RingBroken):
        Ring.attach(RingHandle(memory_fd=memory.fd, data_fd=-1, space_fd=-1))
    memory.close()


def test_the_size_of_a_ring_is_sealed(ring):
    with pytest.raises(PermissionError):
        os.ftruncate(ring.handle.memory_fd, 0)


@pytest.mark.usefixtures("no_descriptors_left")
def test_close_leaves_no_descriptor_and_may_come_twice():
    ring = Ring.create()
    ring.write(b"x", 0)
    ring.close()
    ring.close()


@pytest.mark.usefixtures("no_descriptors_left")
@pytest.mark.parametrize("spare", range(4))
@pytest.mark.parametrize("create", [Ring.create, lambda: BroadcastRing.create(3)], ids=["ring", "broadcast"])
def test_a_ring_for_which_descriptors_are_missing_leaves_none(create, spare):
    """It takes four and more: of the memory, of its mapping, of two events at least."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for _ in range(spare):
            os.close(taken.pop())
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            create()
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_memory_has_no_name(ring):
    assert os.readlink(f"/proc/self/fd/{ring.handle.memory_fd}").endswith("(deleted)")


ECHO = """
records.SPIN_NS = argv[2]
inward, outward = rings
while (record := inward.read(20)) != b"":
    outward.write(record, 20)
"""


@pytest.mark.parametrize("spin", [0, records.SPIN_NS])
def test_no_wake_up_is_lost_between_two_processes(spawn, monkeypatch, spin):
    """Each side sleeps and is woken thousands of times; one lost wake-up would be a None after 20 s."""
    monkeypatch.setattr(records, "SPIN_NS", spin)
    there, back = Ring.create(256), Ring.create(64)
    child = spawn(ATTACH + ECHO, there.handle, back.handle, spin, fds=there.fds + back.fds)
    source = random.Random(1)
    expected = deque()
    for number in range(8000):
        record = bytes([number % 255 + 1]) * source.randint(1, 48)
        there.write(record, 20)
        expected.append(record)
        if number % 3:  # at times two are under way, so that writer and reader meet at any point
            assert back.read(20) == expected.popleft()
        if len(expected) > 2:
            assert back.read(20) == expected.popleft()
    while expected:
        assert back.read(20) == expected.popleft()
    there.write(b"", 20)
    assert child.wait(20) == 0
    there.close()
    back.close()


PRODUCE = """
import random
source = random.Random(7)
for number in range(argv[1]):
    rings[0].write(number.to_bytes(4, "little") * source.randint(1, 60), 20)
"""


def produced(number, source):
    return number.to_bytes(4, "little") * source.randint(1, 60)


def test_a_slow_reader_holds_the_writer_and_misses_nothing(spawn):
    ring = Ring.create(1024)
    child = spawn(ATTACH + PRODUCE, ring.handle, 5000, fds=ring.fds)
    source = random.Random(7)
    number = 0
    while number < 5000:
        record = ring.read(20)
        assert record == produced(number, source)
        number += 1
        if number % 700 == 0:
            os.sched_yield()  # let it run full
    assert child.wait(20) == 0
    ring.close()


def test_an_event_loop_reads_everything_and_is_not_woken_without_cause(spawn):
    ring = Ring.create(4096)
    source = random.Random(7)
    wakes = 0

    async def read_all_of_them():
        nonlocal wakes
        done = asyncio.get_running_loop().create_future()
        seen = []

        def on_readable():
            nonlocal wakes
            wakes += 1
            while True:
                seen.extend(ring.read_all())
                if not ring.arm():
                    break
            if len(seen) == 5000 and not done.done():
                done.set_result(None)

        asyncio.get_running_loop().add_reader(ring.fileno(), on_readable)
        on_readable()
        await asyncio.wait_for(done, 20)
        woken = wakes
        await asyncio.sleep(0.05)  # nothing comes any more; a level that stayed up would wake us all the time
        assert wakes <= woken + 1
        asyncio.get_running_loop().remove_reader(ring.fileno())
        return seen

    child = spawn(ATTACH + PRODUCE, ring.handle, 5000, fds=ring.fds)
    seen = asyncio.run(read_all_of_them())
    assert seen == [produced(number, source) for number in range(5000)]
    assert child.wait(20) == 0
    ring.close()


FOREVER = """
import itertools
for number in itertools.count():
    rings[0].write(number.to_bytes(4, "little") * (number * 7919 % 8000), 20)
"""


def test_a_writer_killed_anywhere_never_shows_a_wrong_byte(spawn):
    """Records of up to 32 kB, so that most kills hit in the middle of a copy."""
    source = random.Random(3)
    for _ in range(20):
        ring = Ring.create(1 << 22)
        child = spawn(ATTACH + FOREVER, ring.handle, fds=ring.fds)
        seen = [ring.read(20)]
        enough = source.randint(0, 3 << 20)
        while ring.unread < enough:
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        seen += ring.read_all()
        for number, record in enumerate(seen):
            assert record == number.to_bytes(4, "little") * (number * 7919 % 8000)
        assert ring.try_read() is None
        assert ring.unread == 0
        ring.close()


DIE_BEFORE_PUBLISHING = """
import os, signal
rings[0].write(b"whole", 1)
def killed():
    assert rings[0]._memory.map.find(b"half" * 20) > 0, "the payload is in place, and nobody may see it"
    os.kill(os.getpid(), signal.SIGKILL)
rings[0]._writer._fence = killed  # the last thing before the counter that shows it
rings[0].write(b"half" * 20, 1)
"""


def test_a_record_that_was_not_published_does_not_exist(spawn):
    ring = Ring.create(1024)
    child = spawn(ATTACH + DIE_BEFORE_PUBLISHING, ring.handle, fds=ring.fds)
    assert child.wait(20) == -signal.SIGKILL
    assert ring.read_all() == [b"whole"]
    assert ring.read(0.01) is None
    assert ring.unread == 0
    ring.close()


DIE_BEFORE_WAKING = """
import os, signal
os.eventfd_write = lambda fd, value: os.kill(os.getpid(), signal.SIGKILL)
while not rings[0]._memory.words[records.bell_word(0)]:
    os.sched_yield()
rings[0].write(b"last words", 1)
"""


def test_a_record_published_by_a_writer_killed_before_it_woke_us_is_still_there(spawn):
    ring = Ring.create(1024)
    child = spawn(ATTACH + DIE_BEFORE_WAKING, ring.handle, fds=ring.fds)
    assert ring.arm() is False
    assert child.wait(20) == -signal.SIGKILL
    assert ring.read_all() == [b"last words"]
    ring.close()


def test_layout_keeps_every_counter_on_its_own_lines():
    words = [0, records.WRITTEN, records.WRITER_BELL]
    words += [word(reader) for reader in range(3) for word in (records.read_word, records.bell_word)]
    lines = [word * 8 // 128 for word in words]
    assert len(set(lines)) == len(lines)
    assert max(lines) < records.data_offset(3) // 128


def test_several_records_may_wake_their_reader_once(ring):
    assert ring.arm() is False
    for record in (b"a", b"b"):
        assert ring.try_write(record, ring=False)
    assert select.select([ring.fileno()], [], [], 0)[0] == []
    ring.ring()
    assert select.select([ring.fileno()], [], [], 0)[0] == [ring.fileno()]
    assert ring.read_all() == [b"a", b"b"]


@pytest.mark.usefixtures("no_descriptors_left")
def test_a_ring_has_its_memory_before_it_is_written():
    ring = Ring.create(1 << 20)
    assert os.fstat(ring.handle.memory_fd).st_blocks * 512 > 1 << 20
    ring.close()
