"""The client's side of the protocol, for asyncio.

A client may be started before its neuron is there, and it reconnects by itself. A request that was open when
the connection ended, or when the neuron fell silent, ends with `Failed(NEURON_LOST)`: nothing waits for ever,
and no reply of an earlier connection can be taken for one of this, since ids are never used again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable

import msgspec
import zmq

from ipc.call import TERMINAL_TYPES, Call
from ipc.errors import Code, CortexError
from ipc.messages.framing import (
    ARRAY_BYTES,
    BYTES_TOGETHER,
    HEADER,
    MOST_TOGETHER,
    PROTOCOL_MAJOR,
    SEVERAL_SINCE,
)
from ipc.messages.replies import AnyReply, Cancelled, Failed, Heartbeat, Progress, Reply
from ipc.messages.requests import AnyRequest, Cancel
from ipc.sockets import MAX_MESSAGE, NOBLOCK, Pump, configure, connection_events

logger = logging.getLogger("ipc.client")

CONNECT_TIMEOUT_MS = 3000
RECONNECT_MS = 100  # first pause; it doubles
RECONNECT_MAX_MS = 2000
TURNS = 4  # of the loop, at most, that a request waits for others to go with it
ENOUGH = 4  # requests that go without that wait, where the neuron has no more of ours than wait

_decode = msgspec.msgpack.Decoder(list[AnyReply]).decode
# Types of replies of which none may be missed. A newer version may know more stages of `Progress`.
_NEEDED = {each.__struct_config__.tag for each in AnyReply.__args__ if each not in (Progress, Heartbeat)}
_NO_HANDSHAKE = (
    "the handshake failed: only one side uses keys, or its public key is another, or it is no neuron"
)
_REFUSED = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not know our key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _NO_HANDSHAKE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _NO_HANDSHAKE,
}


class _Head(msgspec.Struct):
    """What each reply begins with."""

    id: int
    type: str


class NeuronClient:
    """A connection to one neuron, for one event loop.

    Args:
        endpoint: e.g. "tcp://beast.internal:13131".
        secret: our CURVE secret key (Z85); with it goes
        server_public: the neuron's public key (Z85).
        silence: seconds without any message, while calls are open, after which the neuron counts as lost. It
            sends something each second. Where no connection stands yet, a call waits for one so long, but for
            those of `ask`, which have their own bound.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        secret: str | None = None,
        server_public: str | None = None,
        silence: float = 5.0,
    ) -> None:
        if (secret is None) != (server_public is None):
            raise CortexError(
                Code.BAD_REQUEST, f"{endpoint}: our secret key and the neuron's public key belong together"
            )
        self.endpoint = endpoint
        self.alive = False  # connected, and not silent
        self._secret, self._server_public = secret, server_public
        self._silence, self._between_looks = silence, silence / 5
        self._calls: dict[int, Call] = {}  # open ones, by id
        self._connected = False
        self._unsent: dict[int, bytes] = {}  # requests that wait for others, or the connection
        self._sending: asyncio.Handle | None = None  # what will send them, unless there is no connection
        self._takes_several = False  # requests in one message, as those of the neuron say
        self._late_cancels: list[int] = []  # ids of sent requests whose `Cancel` found the queue full
        self._last_id = 0
        self._refusal = ""  # why the last handshake failed; "" after one that did not
        self._encode = msgspec.msgpack.Encoder().encode
        self._started = False

    def start(self) -> None:
        """Begin to connect, in the running loop. CortexError when the endpoint or a key cannot be right."""
        self._loop = asyncio.get_running_loop()
        self._connect()
        self._timer = self._loop.call_later(self._between_looks, self._tick)
        self._started = True

    def _connect(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        configure(self._socket, self.endpoint)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        # Queue for a live connection only: what is not sent yet can still be withdrawn.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        events = connection_events(self._socket)
        try:
            if self._secret is not None and self._server_public is not None:
                self._socket.setsockopt_string(zmq.CURVE_SERVERKEY, self._server_public)
                self._socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._secret)
                self._socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(self._secret.encode()))
            self._socket.connect(self.endpoint)
        except (zmq.ZMQError, ValueError) as error:
            self._socket.disable_monitor()
            self._socket.close()
            events.close()
            raise CortexError(
                Code.BAD_REQUEST, f"cannot use the endpoint {self.endpoint} or its keys: {error}"
            ) from error
        self._heard = self._loop.time()
        self._send = self._socket.send
        self._events = Pump(events, self._on_event)
        self._pump = Pump(self._socket, self._on_message, self._on_drained, views=True)

    def _disconnect(self) -> None:
        self._socket.disable_monitor()  # before its reader goes: see `connection_events`
        self._pump.close()
        self._events.close()
        self._connected = self.alive = False
        self._late_cancels.clear()

    def close(self) -> None:
        """Cancel what is open, and disconnect. Calling it again does nothing."""
        if not self._started:
            return
        self._started = False
        self._give_up(f"the connection to {self.endpoint} was closed")
        self._timer.cancel()
        self._disconnect()

    @property
    def silent_seconds(self) -> float:
        """Since the neuron was heard last. It speaks each second while something is open."""
        return self._loop.time() - self._heard if self._started and self._calls else 0.0

    def open(self, request: AnyRequest, *, patient: bool = False) -> Call:
        """Send a request in a few turns of the loop, or once there is a connection. Its `id` is set here.

        Args:
            patient: the wait for a connection ends with `Call.cancel`, and not after the silence.

        Raises:
            CortexError: the client is not started, or the request is too long for any neuron.
        """
        if not self._started:
            raise CortexError(Code.NEURON_LOST, f"the client of {self.endpoint} is not started")
        self._last_id += 1
        request.id = self._last_id
        body = self._encode(request)
        if (size := len(HEADER) + len(body)) > MAX_MESSAGE:  # the neuron would close the connection, to all
            raise CortexError(Code.BAD_REQUEST, f"the request has {size} bytes; a neuron takes {MAX_MESSAGE}")
        if not self._calls:  # nothing was expected up to now
            self._heard = self._loop.time()
        elif self._connected:
            self._check_silence()  # this process may have stood still, and its connection be no more
        call = self._calls[request.id] = Call(
            request.id, patient, self._loop, self._between_looks, self._cancel
        )
        self._unsent[request.id] = body
        waiting = len(self._unsent)
        if waiting >= ENOUGH and waiting * 2 >= len(self._calls):
            self._send_unsent()  # the neuron works on these while others are still being made here
        elif self._sending is None:
            self._sending = self._loop.call_soon(self._gather, 0, TURNS)
        return call

    async def ask(self, request: AnyRequest, within: float) -> Reply:
        """The terminal reply to a request.

        Raises:
            CortexError: the neuron answered `Failed`, or was lost, or did not answer `within` seconds
                (both NEURON_LOST); then the request is cancelled.
        """
        call = self.open(request, patient=True)
        try:
            async with asyncio.timeout(within):
                async for reply in call:
                    last = reply
        except TimeoutError:
            call.cancel()
            raise CortexError(Code.NEURON_LOST, self.no_answer(within)) from None
        if isinstance(last, Failed):
            raise last.error()
        return last

    def no_answer(self, seconds: float) -> str:
        """What is said of a call that nobody answered for so long."""
        why = f"; {self._refusal}" if self._refusal else ""
        return f"no answer from the neuron at {self.endpoint} within {seconds:g} s{why}"

    def _cancel(self, call: Call) -> None:
        if self._unsent.pop(call.id, None) is not None:
            self._end(call, Cancelled(id=call.id))
        else:
            self._send_cancel(call.id)

    def _send_cancel(self, number: int) -> None:
        if not self._try_send(self._cancel_of(number)):
            self._late_cancels.append(number)

    def _cancel_of(self, number: int) -> bytes:
        return self._encode(Cancel(id=number))

    def _try_send(self, body: bytes) -> bool:
        # Between the end of a connection and our hearing of it, its queue still takes messages, which are
        # lost; so nothing is sent before the next one is known to stand.
        if not self._connected:
            return False
        try:
            self._send(HEADER + body, NOBLOCK)
        except zmq.Again:
            self._pump.check_if_ready()
            return False
        self._pump.check_after_send()
        return True

    def _gather(self, before: int, turns: int) -> None:
        """Send what waits once a turn of the loop brought no more: together it wakes the neuron once.

        Args:
            before: how many waited a turn ago.
            turns: that more may be waited for.
        """
        count = len(self._unsent)
        if count > before and turns:
            self._sending = self._loop.call_soon(self._gather, count, turns - 1)
        else:
            self._sending = None
            self._send_unsent()

    def _on_drained(self) -> None:
        if self._sending is None:
            self._send_unsent()

    def _send_unsent(self) -> None:
        while self._late_cancels and self._try_send(self._cancel_of(self._late_cancels[0])):
            del self._late_cancels[0]
        while self._unsent:
            together = self._next_together()
            bodies = [self._unsent[number] for number in together]
            body = bodies[0] if len(bodies) == 1 else self._encode(list(map(msgspec.Raw, bodies)))
            if not self._try_send(body):
                return
            for number in together:
                del self._unsent[number]

    def _next_together(self) -> list[int]:
        """The next ones of those that wait, as many as travel in one message."""
        chosen: list[int] = []
        most, size = MOST_TOGETHER if self._takes_several else 1, ARRAY_BYTES
        for number, body in self._unsent.items():
            size += len(body)
            if chosen and (size > BYTES_TOGETHER or len(chosen) == most):
                break
            chosen.append(number)
        return chosen

    def _end(self, call: Call, reply: Reply) -> None:
        del self._calls[call.id]
        call.push(reply)

    def _fail(self, numbers: Iterable[int], code: str, message: str) -> None:
        for number in list(numbers):
            self._unsent.pop(number, None)
            self._end(self._calls[number], Failed(id=number, code=code, message=message))

    def _give_up(self, message: str) -> None:
        """End every call here, and tell the neuron that it need not go on with those it has."""
        for number in self._calls.keys() - self._unsent.keys():
            self._send_cancel(number)
        self._fail(self._calls, Code.NEURON_LOST, message)

    def _on_message(self, frames: list[bytes | memoryview]) -> None:
        self._heard = self._loop.time()
        self.alive = True
        frame = frames[0]
        if (frame[: len(HEADER)] != HEADER or len(frames) > 1) and not self._is_ours(frames):
            return
        self._takes_several = frame[3] >= SEVERAL_SINCE
        body = memoryview(frame)[len(HEADER) :]
        try:
            replies = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            replies = self._decode_known(body)
        calls = self._calls
        for reply in replies:
            call = calls.get(reply.id)
            if call is not None:
                if type(reply) in TERMINAL_TYPES:
                    del calls[reply.id]
                call.push(reply)
            elif reply.id == 0 and isinstance(reply, Failed):
                # It could not read one of ours, and cannot say which.
                self._fail(calls, reply.code, reply.message)

    def _is_ours(self, frames: list[bytes | memoryview]) -> bool:
        """Whether a message is of our protocol, of another minor version; where it is of another major one
        nothing that is open can be answered."""
        frame = frames[0]
        ours = len(frame) >= len(HEADER) and frame[:2] == HEADER[:2]
        if ours and frame[2] != PROTOCOL_MAJOR:
            text = (
                f"the neuron at {self.endpoint} speaks protocol {frame[2]}, we speak {PROTOCOL_MAJOR}; "
                "have both of one version of cortex"
            )
            self._fail(self._calls, Code.PROTOCOL_MISMATCH, text)
            return False
        if not ours or len(frames) > 1:
            logger.warning("message ignored endpoint=%s reason=it is none of the protocol", self.endpoint)
            return False
        return True

    def _decode_known(self, body: memoryview) -> list[Reply]:
        """The replies that we understand: a newer minor version may have more types. One that we know and
        cannot read ends its call, which might wait for ever for what it said."""
        known: list[Reply] = []
        try:
            for raw in msgspec.msgpack.decode(body, type=list[msgspec.Raw]):
                try:
                    known.append(msgspec.msgpack.decode(raw, type=AnyReply))
                except (msgspec.ValidationError, UnicodeDecodeError) as error:
                    if (end := self._end_of(raw, error)) is not None:
                        known.append(end)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("message ignored endpoint=%s reason=%s", self.endpoint, error)
        return known

    def _end_of(self, raw: msgspec.Raw, error: Exception) -> Failed | None:
        """The end of the call whose reply cannot be read, where there is one that needs it."""
        try:
            head = msgspec.msgpack.decode(raw, type=_Head)
        except (msgspec.ValidationError, UnicodeDecodeError):
            return None
        if head.type not in _NEEDED or head.id not in self._calls:
            return None
        self._send_cancel(head.id)
        text = f"what the neuron at {self.endpoint} says cannot be read: {head.type}: {error}"
        return Failed(id=head.id, code=Code.INTERNAL, message=text)

    def _on_event(self, frames: list[bytes]) -> None:
        event, _value = struct.unpack("=HI", frames[0])
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusal = ""
            self._heard = self._loop.time()
            self._connected = self.alive = True
            self._takes_several = False  # it may be another neuron than before
            self._pump.check()  # the socket leaves the old queue and takes the new one, then sends
            return
        self._pump.check()  # replies that came before the news of the end
        was_connected = self._connected
        self._connected = self.alive = False
        self._late_cancels.clear()
        if event in _REFUSED:
            self._refusal = _REFUSED[event]
            text = f"no connection to the neuron at {self.endpoint}: {self._refusal}"
            self._fail(self._calls, Code.NEURON_LOST, text)
        else:
            # What was about to be sent need not wait for the next connection: others may have one.
            lost = [
                number
                for number, call in self._calls.items()
                if number not in self._unsent or (was_connected and not call.patient)
            ]
            self._fail(lost, Code.NEURON_LOST, f"the connection to the neuron at {self.endpoint} was lost")

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._between_looks, self._tick)
        now = self._loop.time()
        for call in self._calls.values():
            call.look(now)
        self._check_silence()

    def _check_silence(self) -> None:
        """Give the neuron up when it was silent for too long, and its connection, which may have ended
        without our hearing of it."""
        if self.silent_seconds <= self._silence:
            return
        self._pump.check()  # where it was this process that stood still, the messages are here, unread
        if self.silent_seconds <= self._silence:
            return
        self.alive = False
        if self._connected:
            self._give_up(self.no_answer(self._silence))
            self._disconnect()
            self._connect()
        else:  # nothing was sent: all of them wait for a connection
            hasty = [number for number, call in self._calls.items() if not call.patient]
            self._fail(hasty, Code.NEURON_LOST, self.no_answer(self._silence))
