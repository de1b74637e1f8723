"""The line between a supervisor and one of its worker processes: what to be, down; what it is, up.

A socket pair that keeps messages apart (AF_UNIX, SOCK_SEQPACKET) and takes descriptors to a process that runs
already (SCM_RIGHTS): a worker gets the rings of its rank here, whether it has just been started or has waited
for an hour. Either end notices when the other one is gone.
"""

from __future__ import annotations

import os
import socket
from array import array
from contextlib import suppress
from typing import Self

import msgspec

from ipc.worker_messages import BroadcastHandle, RingHandle, Waiting, WarmUp, WorkerSpec

MESSAGE_BYTES = 1 << 17  # the longest message; the kernel's buffer holds one of them at least
DESCRIPTORS = 253  # that one message can carry: the kernel's SCM_MAX_FD

Message = WarmUp | WorkerSpec | Waiting

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class ControlBroken(Exception):
    """What came is no message, or came without its descriptors."""


class Control:
    """One end. A context manager that closes it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Control, Control]:
        """Two ends that speak with each other."""
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(mine), cls(other)

    @classmethod
    def attach(cls, fd: int) -> Control:
        """The end that this process inherited as `fd`, which it now owns."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Readable when there is a message, and when the other end is gone."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send `message`, and with a `WorkerSpec` the descriptors that it names. Never waits.

        Raises:
            OSError: the other end is gone or reads nothing, or there are too many descriptors.
            ValueError: the message is too long.
        """
        data = _encoder.encode(message)
        if len(data) > MESSAGE_BYTES:
            raise ValueError(f"a message of {len(data)} bytes is longer than {MESSAGE_BYTES}")
        fds = descriptors(message) if isinstance(message, WorkerSpec) else []
        # not `socket.send_fds` and `recv_fds`: they take flags and drop them
        self._socket.sendmsg(
            [data],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))],
            socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
        )

    def receive(self, *, wait: bool = True) -> Message | None:
        """The next message; None when the other end is gone.

        A `WorkerSpec` names the descriptors by their numbers in this process, which owns them now.

        Raises:
            BlockingIOError: there is no message, and `wait` is not asked for.
            ControlBroken: what came cannot be used; descriptors that came with it are closed.
        """
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                MESSAGE_BYTES,
                socket.CMSG_LEN(DESCRIPTORS * array("i").itemsize),
                socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT),
            )
        except ConnectionResetError:  # it left without having read what we said last
            return None
        fds = array("i", b"".join(item for _, _, item in ancillary)).tolist()  # all of it is SCM_RIGHTS
        try:
            if not data and not fds:
                return None
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ControlBroken("a message came in part")
            message = _decoder.decode(data)
            if isinstance(message, WorkerSpec):
                return renumbered(message, fds)
            if fds:
                raise ControlBroken(f"{len(fds)} descriptors came with {type(message).__name__}")
            return message
        except (ControlBroken, msgspec.MsgspecError) as error:
            for fd in fds:
                os.close(fd)
            raise ControlBroken(str(error)) from error

    def hang_up(self) -> None:
        """End the talk: the other end gets what it has not read yet, and then sees this one gone."""
        with suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The other end learns of it. Calling it again does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def descriptors(spec: WorkerSpec) -> list[int]:
    """All that `spec` names, in one fixed order."""
    fds = [*_of_ring(spec.reports), spec.heartbeat_fd]
    if spec.commands is not None:
        fds += _of_ring(spec.commands)
    if spec.plans is not None:
        fds += [spec.plans.memory_fd, *spec.plans.data_fds, spec.plans.space_fd]
    fds += [fd for fd in (spec.card_fd, spec.sum_fd, spec.parking_fd) if fd is not None]
    return fds if spec.store_fd is None else [*fds, spec.store_fd]


def renumbered(spec: WorkerSpec, fds: list[int]) -> WorkerSpec:
    """`spec` with its descriptors replaced by `fds`, which stand in the order of `descriptors`.

    Raises:
        ControlBroken: there are more or fewer of them than `spec` names.
    """
    named = descriptors(spec)
    if len(named) != len(fds):
        raise ControlBroken(f"{len(fds)} descriptors came and not {len(named)}")
    rest = iter(fds)

    def ring() -> RingHandle:
        return RingHandle(memory_fd=next(rest), data_fd=next(rest), space_fd=next(rest))

    reports, heartbeat_fd = ring(), next(rest)
    commands = ring() if spec.commands is not None else None
    plans = None
    if spec.plans is not None:
        memory_fd, *data_fds = (next(rest) for _ in range(1 + len(spec.plans.data_fds)))
        plans = BroadcastHandle(memory_fd=memory_fd, data_fds=data_fds, space_fd=next(rest))
    card_fd = next(rest) if spec.card_fd is not None else None
    sum_fd = next(rest) if spec.sum_fd is not None else None
    parking_fd = next(rest) if spec.parking_fd is not None else None
    return msgspec.structs.replace(
        spec,
        card_fd=card_fd,
        sum_fd=sum_fd,
        parking_fd=parking_fd,
        reports=reports,
        heartbeat_fd=heartbeat_fd,
        commands=commands,
        plans=plans,
        store_fd=next(rest, None),
    )


def _of_ring(handle: RingHandle) -> list[int]:
    return [handle.memory_fd, handle.data_fd, handle.space_fd]
