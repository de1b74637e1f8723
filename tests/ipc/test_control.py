"""The line to a worker process: what is sent arrives, with its descriptors, or is refused without a trace."""

import os
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.broadcast import BroadcastRing
from ipc.control import DESCRIPTORS, MESSAGE_BYTES, Control, ControlBroken, descriptors
from ipc.memory import SharedMemory
from ipc.ring import Ring
from ipc.worker_messages import Footprint, RingHandle, Waiting, WarmUp, WorkerSpec

pytestmark = pytest.mark.usefixtures("no_descriptors_left")
WAITING = Waiting(loads=3, held=Footprint(host=7), baseline=Footprint(host=5, device=1))


@pytest.fixture
def ends():
    mine, other = Control.pair()
    with mine, other:
        yield mine, other


def spec(reports, **changes):
    fields = {
        "model": "m",
        "engine": "simulated",
        "epoch": 1,
        "rank": 0,
        "world_size": 1,
        "device": "cpu",
        "threads": 1,
        "context_length": 100,
        "max_sequences": 1,
        "max_step_tokens": 10,
        "kv_pages": 10,
        "heartbeat_fd": 0,
    }
    return WorkerSpec(**fields | changes, reports=reports)


@pytest.mark.parametrize("message", [WarmUp(device="cuda:1"), WAITING])
def test_messages_arrive_one_by_one(ends, message):
    mine, other = ends
    mine.send(message)
    mine.send(message)
    assert other.receive() == message
    assert other.receive() == message
    with pytest.raises(BlockingIOError):
        other.receive(wait=False)


def test_a_rank_s_descriptors_arrive_under_new_numbers_and_are_the_same_things(ends):
    mine, other = ends
    reports, commands, plans = Ring.create(256), Ring.create(256), BroadcastRing.create(2)
    sums = SharedMemory.create("sums", 8)
    rings = {"commands": commands.handle, "plans": plans.handle}
    with socket.create_server(("127.0.0.1", 0)) as store:
        sent = spec(reports.handle, **rings, sum_fd=sums.fd, store_fd=store.fileno())
        mine.send(sent)
        got = other.receive()
        assert socket.socket(fileno=os.dup(got.store_fd)).getsockname() == store.getsockname()
    assert os.path.samestat(os.fstat(got.sum_fd), os.fstat(sums.fd))
    assert len(set(descriptors(got))) == len(descriptors(sent)) == 13
    assert not set(descriptors(got)) & set(descriptors(sent))
    assert not any(map(os.get_inheritable, descriptors(got)))
    numbers = {"reports": sent.reports, "commands": sent.commands, "plans": sent.plans, "heartbeat_fd": 0}
    assert msgspec.structs.replace(got, **numbers, sum_fd=sums.fd, store_fd=sent.store_fd) == sent
    there = Ring.attach(got.reports)
    there.write(b"hello", 1)
    assert reports.read(1) == b"hello"
    there.close()
    for fd in descriptors(got)[3:]:
        os.close(fd)
    for each in (reports, commands, plans, sums):
        each.close()


def test_a_spec_in_the_line_is_read_after_its_sender_left(ends):
    mine, other = ends
    ring = Ring.create(256)
    mine.send(spec(ring.handle))
    mine.hang_up()
    ring.close()
    got = other.receive()
    assert got.model == "m"
    assert other.receive() is None
    for fd in descriptors(got):
        os.close(fd)


def test_either_end_sees_that_the_other_one_is_gone(ends):
    mine, other = ends
    mine.send(WAITING)
    other.close()
    assert mine.receive() is None
    with pytest.raises(OSError, match="Broken pipe"):
        mine.send(WAITING)
    mine.hang_up()


def test_a_peer_that_reads_nothing_holds_nobody_up(ends):
    def talk():
        for _ in range(10_000):
            ends[0].send(WAITING)

    with pytest.raises(BlockingIOError):
        talk()


def test_what_is_too_long_is_not_sent(ends):
    with pytest.raises(ValueError, match="longer"):
        ends[0].send(WarmUp(device="x" * MESSAGE_BYTES))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_spec_without_its_descriptors_is_refused_and_they_are_closed(count):
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with raw, Control(other) as control:
        handle = RingHandle(memory_fd=1, data_fd=2, space_fd=3)
        socket.send_fds(raw, [msgspec.msgpack.encode(spec(handle))], [0] * count)
        with pytest.raises(ControlBroken, match=f"{count} descriptors"):
            control.receive()


def test_descriptors_that_nobody_asked_for_are_closed():
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with raw, Control(other) as control:
        socket.send_fds(raw, [msgspec.msgpack.encode(WAITING)], [0] * DESCRIPTORS)
        with pytest.raises(ControlBroken, match="Waiting"):
            control.receive()
        socket.send_fds(raw, [b"x" * (MESSAGE_BYTES + 1)], [0])
        with pytest.raises(ControlBroken, match="in part"):
            control.receive()


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_refused(data):
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with raw, Control(other) as control:
        raw.send(data)
        with pytest.raises(ControlBroken):
            control.receive()
