"""Records in shared memory: one writer, one or more readers, each in its own process.

The memory holds a line of constants, the counters, and a power-of-two region of bytes used in a circle:

    line 0            magic, capacity, number of readers
    line 1            written: bytes published so far            (stored by the writer)
    line 2            the writer's doorbell
    line 3 + 2i       read: bytes that reader i is done with     (stored by reader i)
    line 4 + 2i       reader i's doorbell
    data              8-byte header (sequence number << 32 | length), payload, padding to 8 bytes; again

A record becomes visible by one thing only: the store of `written`, after header and payload are in place. A
writer that is killed anywhere before that store has shown nothing; readers never see a wrong byte. The
sequence number and the length guard against the rest (a stray store, a bug): they must match, or the reader
raises `RingBroken` and goes no further.

A full region is back-pressure, never loss: room is what the slowest reader is done with.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable, Sequence

from ipc.memory import LINE_WORDS, WORD, SharedMemory, make_fence

MAGIC = int.from_bytes(b"cxring\x00\x01", "big")
WRITTEN = 1 * LINE_WORDS
WRITER_BELL = 2 * LINE_WORDS
SPIN_NS = 50_000  # the longest spin before sleeping
MAX_UNSPUN = 63  # waits without one, after spins that were of no use


class RingBroken(Exception):
    """The other side wrote something impossible: it must be treated as dead."""


class RingFull(Exception):
    """No room within the time allowed: a reader is too slow, or gone."""


def read_word(reader: int) -> int:
    """Number of the word that says how far that reader is."""
    return (3 + 2 * reader) * LINE_WORDS


def bell_word(reader: int) -> int:
    """Number of the word that is its doorbell."""
    return (4 + 2 * reader) * LINE_WORDS


def data_offset(readers: int) -> int:
    """Byte at which records begin."""
    return (3 + 2 * readers) * LINE_WORDS * WORD


def create_memory(name: str, capacity: int, readers: int) -> SharedMemory:
    """Memory for `capacity` bytes of records (a power of two, at least 64), headers included."""
    if capacity < 64 or capacity & (capacity - 1):
        raise ValueError(f"the capacity of a ring must be a power of two of at least 64, not {capacity}")
    memory = SharedMemory.create(name, data_offset(readers) + capacity)
    memory.words[0], memory.words[1], memory.words[2] = MAGIC, capacity, readers
    return memory


def attach_memory(fd: int, readers: int) -> SharedMemory:
    """Map memory that another process made; `RingBroken` when it is not such memory."""
    memory = SharedMemory(fd)
    words = memory.words
    if len(words) < LINE_WORDS or words[0] != MAGIC or words[2] != readers:
        raise RingBroken(f"descriptor {fd} holds no ring for {readers} reader(s)")
    if len(memory.map) != data_offset(readers) + words[1]:
        raise RingBroken(f"descriptor {fd} holds {len(memory.map)} bytes: wrong for capacity {words[1]}")
    return memory


class Doorbell:
    """How one side sleeps until the other has done something: a word in shared memory and an eventfd.

    The sleeper stores 1 into the word, looks once more, and polls the eventfd. The other side stores its
    counter, then loads the word, and only where it finds 1 pays for the system call. Were the store and the
    load of either side to change places, both could miss each other: the sleeper would find no news, the
    other no sleeper. So each has a fence between the two.

    `ring` clears the word *before* it writes the eventfd. The other way round, a sleeper that is quick enough
    to wake, look and lie down again would have its new 1 wiped out. Every clear is followed by a write, so
    the worst is one wake-up too many.
    """

    __slots__ = ("_failures", "_fd", "_fence", "_poll", "_unspun", "_word", "_words")

    def __init__(self, words: memoryview, word: int, fd: int) -> None:
        self._words, self._word, self._fd = words, word, fd
        self._fence = make_fence()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._unspun = 0  # of the next waits, so many go to sleep without a spin
        self._failures = 0  # `_unspun` after the last spin that failed

    def ring(self) -> None:
        """Wake the sleeper, if there is one. Call it after the store that it waits for."""
        self._fence()
        if self._words[self._word]:
            self._words[self._word] = 0
            os.eventfd_write(self._fd, 1)

    def arm(self, ready: Callable[[], bool]) -> bool:
        """Lie down, then look once more: True means that `ready` holds and that nobody sleeps."""
        self._words[self._word] = 1
        self._fence()
        if ready():
            self._words[self._word] = 0
            return True
        return False

    def drain(self) -> None:
        """Take back what rings have left in the eventfd."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return  # it was empty

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Block until `ready()`, at most `timeout` seconds (None: for ever)."""
        deadline = None if timeout is None else time.perf_counter_ns() + int(timeout * 1e9)
        if self._spin(ready, deadline):
            return True
        try:
            while not self.arm(ready):
                left = None if deadline is None else deadline - time.perf_counter_ns()
                if left is not None and left <= 0:
                    return False
                if self._poll.poll(None if left is None else math.ceil(left / 1e6)):
                    os.eventfd_read(self._fd)
            return True
        finally:
            self._words[self._word] = 0

    def _spin(self, ready: Callable[[], bool], deadline: int | None) -> bool:
        """Look again and again, 50 µs at most: a process that sleeps takes longer than that to wake.

        It cannot help where the other side needs this very core, or takes its time anyway. So after each spin
        in vain, twice as many waits do without one.
        """
        if self._unspun:
            self._unspun -= 1
            return False
        until = time.perf_counter_ns() + SPIN_NS
        if deadline is not None:
            until = min(until, deadline)
        while not ready():
            if time.perf_counter_ns() >= until:
                self._failures = self._unspun = min(2 * self._failures + 1, MAX_UNSPUN)
                return False
        self._failures = 0
        return True


class Writer:
    """The writing end. One thread of one process uses it, from the ring's first record on.

    Args:
        data_fds: one eventfd for each reader, non-blocking; wakes it.
        space_fd: the eventfd that wakes this writer when there is room again.
    """

    def __init__(self, memory: SharedMemory, data_fds: Sequence[int], space_fd: int) -> None:
        self._map, self._words = memory.map, memory.words
        self._capacity = self._words[1]
        self._mask = self._capacity - 1
        self._base = data_offset(len(data_fds))
        self._stop = self._base + self._capacity
        self._bells = [Doorbell(self._words, bell_word(i), fd) for i, fd in enumerate(data_fds)]
        self._space = Doorbell(self._words, WRITER_BELL, space_fd)
        self._fence = make_fence()
        self._position = 0
        self._sequence = 0
        self.largest = self._capacity - WORD  # bytes of a record; one that is larger never has room
        self._limit = self._capacity  # where the region was full when a reader's counter was last looked at

    def try_write(self, record: bytes, *, ring: bool = True) -> bool:
        """Publish a record if there is room for it now.

        Args:
            ring: wake those who wait for it; else call `ring` for this record and those after it.

        Raises:
            ValueError: the record is larger than the whole ring.
            RingBroken: a reader's counter is impossible.
        """
        length = len(record)
        position = self._position
        end = position + ((length + 2 * WORD - 1) & -WORD)
        if end > self._limit and not self._has_room(end):
            return False
        offset = self._base + (position & self._mask)
        start = offset + WORD
        self._words[offset >> 3] = (self._sequence & 0xFFFFFFFF) << 32 | length
        if start + length <= self._stop:
            self._map[start : start + length] = record
        else:
            split = self._stop - start
            self._map[start : self._stop] = record[:split]
            self._map[self._base : self._base + length - split] = record[split:]
        self._fence()  # the record, then the counter that shows it
        self._words[WRITTEN] = self._position = end
        self._sequence += 1
        if ring:
            for bell in self._bells:  # as `ring` does: a call costs a record a twentieth
                bell.ring()
        return True

    def ring(self) -> None:
        """Wake the readers that wait."""
        for bell in self._bells:
            bell.ring()

    def _has_room(self, end: int) -> bool:
        position, capacity = self._position, self._capacity
        if end - position > capacity:
            raise ValueError(f"a record of {end - position} bytes does not fit into a ring of {capacity}")
        slowest = position
        for reader in range(len(self._bells)):
            read = self._words[read_word(reader)]
            if not position - capacity <= read <= position:
                raise RingBroken(f"reader {reader} says it read {read} bytes of {position}")
            slowest = min(slowest, read)
        self._fence()  # the readers' loads are done before we store over what they read
        self._limit = slowest + capacity
        return end <= self._limit

    def arm_room(self, record: bytes) -> bool:
        """Ask for the eventfd `space_fd` to become readable when readers give room back.

        Returns:
            True when there is room for this record already: write it, and nobody is waited for.
        """
        end = self._end_of(record)
        return self._space.arm(lambda: self._has_room(end))

    def drain_room(self) -> None:
        """Take back what has made `space_fd` readable."""
        self._space.drain()

    def _end_of(self, record: bytes) -> int:
        return self._position + ((len(record) + 2 * WORD - 1) & -WORD)

    def write(self, record: bytes, timeout: float) -> None:
        """Publish a record, waiting up to `timeout` seconds for room; then `RingFull`."""
        if self.try_write(record):
            return
        end = self._end_of(record)
        if not self._space.wait(lambda: self._has_room(end), timeout):
            raise RingFull(f"no room for a record of {len(record)} bytes within {timeout:g} s")
        self.try_write(record)


class Reader:
    """The reading end number `index`. One thread of one process uses it, from the ring's first record on."""

    def __init__(self, memory: SharedMemory, index: int, readers: int, data_fd: int, space_fd: int) -> None:
        self._map, self._words = memory.map, memory.words
        self._capacity = self._words[1]
        self._mask = self._capacity - 1
        self._base = data_offset(readers)
        self._stop = self._base + self._capacity
        self._read = read_word(index)
        self._bell = Doorbell(self._words, bell_word(index), data_fd)
        self._space = Doorbell(self._words, WRITER_BELL, space_fd)
        self._fence = make_fence()
        self._position = 0
        self._sequence = 0
        self._written = 0  # the writer's counter when it was last looked at
        self._armed = False

    def _has_record(self) -> bool:
        written, position = self._words[WRITTEN], self._position
        if not position <= written <= position + self._capacity or written & (WORD - 1):
            raise RingBroken(f"the writer says it wrote {written} bytes; {position} are read")
        self._fence()  # the counter, then the records that it shows
        self._written = written
        return written != position

    def _take(self) -> bytes:
        """The next record; there must be one."""
        position = self._position
        offset = self._base + (position & self._mask)
        header = self._words[offset >> 3]
        length = header & 0xFFFFFFFF
        end = position + ((length + 2 * WORD - 1) & -WORD)
        if header >> 32 != self._sequence & 0xFFFFFFFF:
            raise RingBroken(f"record {header >> 32} stands where record {self._sequence} should")
        if end > self._written:
            raise RingBroken(f"record {self._sequence} says it has {length} bytes; the writer wrote fewer")
        start = offset + WORD
        stop = start + length
        if stop <= self._stop:
            record = self._map[start:stop]
        else:
            record = self._map[start : self._stop] + self._map[self._base : stop - self._capacity]
        self._position = end
        self._sequence += 1
        return record

    def _release(self) -> None:
        """Give the room of what was read back to the writer."""
        self._fence()  # our loads, then the counter that lets the writer store over them
        self._words[self._read] = self._position
        self._space.ring()

    def try_read(self) -> bytes | None:
        """The next record, or None. `RingBroken` when the next one cannot be right."""
        if self._written == self._position and not self._has_record():
            return None
        record = self._take()
        self._release()
        return record

    def read(self, timeout: float | None) -> bytes | None:
        """The next record, waiting up to `timeout` seconds (None: for ever); None when there was none."""
        record = self.try_read()
        if record is None and self._bell.wait(self._has_record, timeout):
            record = self.try_read()
        return record

    def read_all(self, most: float = math.inf) -> list[bytes]:
        """Every record that is there now, oldest first. Never blocks; takes back what woke us up.

        Args:
            most: bytes, after which the rest stays for the next time; `arm` says that there is one.
        """
        if self._armed:
            self._bell.drain()
            self._armed = False
        records = []
        if self._has_record():
            until = self._position + most
            while self._position != self._written and self._position < until:
                records.append(self._take())
            self._release()
        return records

    def arm(self) -> bool:
        """Ask for the eventfd to become readable at the next record.

        Returns:
            True when there are records already: read again first, then arm again.
        """
        self._armed = True
        return self._bell.arm(self._has_record)
