"""Raw ZeroMQ sockets on an asyncio loop.

`zmq.asyncio` makes a future for every message, which is far more than the message costs. Here a socket's
descriptor is registered with the loop, and messages go to a plain function.

That descriptor is edge-triggered, and any call on the socket may swallow the edge: after the loop says
"readable" everything must be read, and after every send the socket must be looked at again. `Pump` does both.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from time import monotonic

import zmq

# Plain ints: pyzmq's flag enums cost more than the send itself.
NOBLOCK = int(zmq.NOBLOCK)
NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

MAX_MESSAGE = 64 << 20  # bytes; a peer that sends more is disconnected
MAX_FRAMES = 16  # of one message that are kept: garbage may have more
LARGE_FRAME = 1 << 20  # bytes; a copy of 40 MB takes 20 ms
HEARTBEAT_MS = 1000  # ZMTP ping; a peer silent for three of them is disconnected, even where TCP sees nothing
LINGER_MS = 500
TURN_SECONDS = 0.005  # of messages; then other callbacks of the loop have their turn

_numbers = itertools.count()


def configure(socket: zmq.Socket, endpoint: str) -> None:
    """Options of every socket between hosts: bounded messages, bounded linger, dead peers noticed."""
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    # Only for addresses written as IPv6: libzmq tries one address of a name, and would take the IPv6 one.
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))


def receive(socket: zmq.Socket, views: bool = False) -> list[bytes | memoryview]:
    """The frames of the next message; `zmq.Again` when there is none.

    Args:
        views: large ones stay where they lie.
    """
    frames = []
    more = True
    while more:
        frame = socket.recv(NOBLOCK, copy=False)
        more = frame.more
        if len(frames) < MAX_FRAMES:
            frames.append(frame.buffer if views and len(frame) > LARGE_FRAME else frame.bytes)
    return frames


def connection_events(socket: zmq.Socket) -> zmq.Socket:
    """A socket that reads what becomes of the connection of `socket`.

    libzmq writes these events from its I/O thread, and blocks there, with every socket of the process, while
    they find no reader or no room. So the queue has no limit (a few events a reconnection), and whoever reads
    it calls `socket.disable_monitor()` before closing it.
    """
    address = f"inproc://cortex-events-{next(_numbers)}"
    socket.monitor(
        address,
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_DISCONNECTED,
    )
    events = socket.context.socket(zmq.PAIR)
    events.setsockopt(zmq.LINGER, 0)
    events.setsockopt(zmq.RCVHWM, 0)
    events.connect(address)
    return events


class Pump:
    """Hands each message that comes in on `socket` to `on_message`, within the running loop.

    Args:
        on_drained: called when nothing is left to read, which is also when the socket may have become
            writable again.
        views: see `receive`.
    """

    def __init__(
        self,
        socket: zmq.Socket,
        on_message: Callable[[list[bytes]], None],
        on_drained: Callable[[], None] | None = None,
        *,
        views: bool = False,
    ) -> None:
        self._socket, self._views = socket, views
        self._on_message, self._on_drained = on_message, on_drained
        self._loop = asyncio.get_running_loop()
        self._fd = socket.getsockopt(zmq.FD)
        self._loop.add_reader(self._fd, self.check)
        self._soon: asyncio.Handle | None = None
        self.check_soon()

    def check_soon(self) -> None:
        """Look at the socket in the loop's next turn. To be called after every send."""
        if self._soon is None:
            self._soon = self._loop.call_soon(self.check)

    def check_after_send(self) -> None:
        """The same, where nothing waits for room: in its next turn, if there is something to read."""
        if self._soon is None and self._socket.getsockopt(_EVENTS) & _POLLIN:
            self.check_soon()

    def check_if_ready(self) -> None:
        """The same after a send that found no room: once that room is there, or something to read."""
        if self._socket.getsockopt(zmq.EVENTS):
            self.check_soon()

    def check(self) -> None:
        """Read what is there."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        until = monotonic() + TURN_SECONDS
        while True:
            # Nearly always there is one message or none, and to be told so by `zmq.Again` costs far more.
            if not self._socket.getsockopt(_EVENTS) & _POLLIN:
                if self._on_drained is not None:
                    self._on_drained()
                return
            frames = receive(self._socket, self._views)
            try:
                self._on_message(frames)
            except BaseException:
                self.check_soon()  # the edge is used up: without this, what comes next would lie there
                raise
            if self._socket.closed:
                return
            if monotonic() > until:
                self.check_soon()
                return

    def close(self) -> None:
        """Leave the loop, and close the socket."""
        if self._soon is not None:
            self._soon.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close()
