"""The neuron's side of the protocol: one ROUTER socket, many peers, every request answered exactly once.

It owns what is the same for all verbs: framing, versions, ids, heartbeats, slow peers and vanished ones. What
a verb means is the handler's business.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import zmq
from msgspec import Meta

from ipc.errors import Code, CortexError
from ipc.messages.framing import BYTES_TOGETHER, HEADER, MOST_TOGETHER, PROTOCOL_MAJOR, PROTOCOL_MINOR
from ipc.messages.replies import TERMINAL, Cancelled, Failed, Heartbeat, Reply
from ipc.messages.requests import (
    AnyRequest,
    Cancel,
    Logs,
    Watch,
    misread,
)
from ipc.socket_file import SocketFile
from ipc.sockets import LARGE_FRAME, LINGER_MS, MAX_MESSAGE, NOBLOCK, NOBLOCK_MORE, Pump, configure
from ipc.unread import UNREAD_VERBS, Unread, first_fields
from ipc.zap import Gatekeeper

logger = logging.getLogger("ipc.server")

HEARTBEAT_SECONDS = 1.0
RETRY_SECONDS = 0.02  # between tries to send to a peer whose queue is full
STALL_SECONDS = 10.0  # a peer that takes nothing for so long is given up
MAX_OPEN = 1 << 16  # requests of one peer that are open,
MAX_FOLLOWED = 16  # and of these such as are told of every change
MAX_BACKLOG = 100_000  # replies that wait for one peer, before it is given up
MAX_ID = (1 << 64) - 1
PROTOCOL_1 = b"cx\x01"  # how messages of it begin; they had two frames, header and body
LARGE = 64 << 10  # bytes of a request; smaller ones are read within some milliseconds
MOST = 1 << 20  # bytes of a request that this process has to read, however large


class _Envelope(msgspec.Struct):
    """The least that a request must have, to say whose request it is that cannot be read."""

    id: int = 0
    verb: str = ""


_VERBS = frozenset(request.__struct_config__.tag for request in AnyRequest.__args__)


_FOLLOWING = frozenset((Watch, Logs))
_decode = msgspec.msgpack.Decoder(AnyRequest).decode
_Several = Annotated[list[msgspec.Raw], Meta(max_length=MOST_TOGETHER)]
_decode_several = msgspec.msgpack.Decoder(_Several).decode
_decode_unread = msgspec.msgpack.Decoder(Unread).decode


class Encoded:
    """A terminal reply that another process has encoded.

    Args:
        request_id: of the request that it answers; the reply itself says the same.
        kind: the name of its type.
        reply: in msgpack.
    """

    def __init__(self, request_id: int, kind: str, reply: bytes) -> None:
        self.id = request_id
        self.kind = kind
        self.reply = reply


def _encoded(reply: Any) -> msgspec.Raw:
    if isinstance(reply, Encoded):
        return msgspec.Raw(reply.reply)
    raise NotImplementedError(f"there is no way to encode {type(reply).__name__}")


_TERMINAL = frozenset((*TERMINAL, Encoded))


class Peer:
    """A client with open requests. When it has none, it is forgotten; when it comes back, it is a new Peer.

    Attributes:
        key: libzmq's name of the connection; a client that reconnects has another one.
        gone: it vanished or stopped reading; nothing sent to it arrives any more.
    """

    __slots__ = ("_open", "_outbox", "_server", "_stalled", "_stuck", "gone", "key")

    def __init__(self, server: Server, key: bytes) -> None:
        self.key = key
        self.gone = False
        self._server = server
        self._open: dict[int, type] = {}  # request id -> its verb's type
        self._outbox: list[Reply | Encoded] = []
        self._stuck: bytearray | None = None  # a message that its queue had no room for
        self._stalled = 0.0  # since when (loop time)

    def holds(self, request_id: int) -> bool:
        """Whether that request is still open: not ended, the peer not gone."""
        return request_id in self._open

    def send(self, reply: Reply | Encoded) -> None:
        """Queue a reply; all replies queued in one turn of the loop leave as one message.

        A terminal reply closes its request. What comes for a closed request is dropped, so nothing can follow
        a terminal reply.
        """
        if reply.id in self._open:
            if type(reply) in _TERMINAL:
                del self._open[reply.id]
            self._server._queue(self, reply)


class Server:
    """Serves the protocol on `endpoint`.

    Args:
        endpoint: e.g. "tcp://127.0.0.1:13131"; port 0 takes a free one.
        handler: called with each well-formed request, in the loop; it must not block. `Cancel` is passed on,
            too, where its request is still open. A large one comes as `Unread`, of a verb that may be large.
            An exception it raises ends that request with `Failed`.
        on_gone: called once with each peer that vanished with requests open, or that stopped reading. Those
            requests are closed; whoever works for them should stop.
        secret: this neuron's CURVE secret key (Z85).
        allowed: public keys (Z85) of the clients that may connect.
        insecure: listen off loopback without keys all the same.

    Raises:
        CortexError: off loopback without keys, or with a secret key that nobody may use.
    """

    def __init__(
        self,
        endpoint: str,
        handler: Callable[[Peer, AnyRequest | Unread], None],
        on_gone: Callable[[Peer], None],
        *,
        secret: str | None = None,
        allowed: Sequence[str] = (),
        insecure: bool = False,
    ) -> None:
        check_keys(endpoint, secret, allowed, insecure)
        self.endpoint = endpoint
        self._handler, self._on_gone = handler, on_gone
        self._secret, self._allowed = secret, allowed
        self._peers: dict[bytes, Peer] = {}  # those with open requests
        self._dirty: list[Peer] = []  # those with replies queued since the last flush
        self._blocked: list[Peer] = []  # those with a message that their queue had no room for
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encoded)
        self._started = False

    def start(self) -> None:
        """Listen, in the running loop. OSError when the endpoint cannot be had (somebody listens there)."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()  # of its own: a context has one gatekeeper
        self._socket = self._context.socket(zmq.ROUTER)
        configure(self._socket, self.endpoint)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._gatekeeper = None
        if self._secret is not None:
            self._gatekeeper = Gatekeeper(self._context, self._allowed)
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._secret)
        self._file = SocketFile(self.endpoint)
        try:
            self._file.check_free()
            self._socket.bind(self.endpoint)
            self._file.own()
        except (zmq.ZMQError, OSError) as error:
            self._socket.close()
            self._close_context()
            text = f"cannot listen on {self.endpoint}: {error.strerror or error}"
            if error.errno == errno.EADDRINUSE:
                text += "; end what listens there, or choose another address"
            raise OSError(error.errno, text) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._pump = Pump(self._socket, self._on_message, views=True)
        self._send = self._socket.send
        self._retry: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Handle | None = None
        self._beat = self._loop.call_later(HEARTBEAT_SECONDS, self._heartbeat)
        self._started = True

    def close(self) -> None:
        """Send what is queued, for half a second at most, and stop listening. Again does nothing."""
        if not self._started:
            return
        self._started = False
        self._flush()
        for handle in (self._beat, self._retry, self._flushing):
            if handle is not None:
                handle.cancel()
        self._file.remove()
        self._pump.close()
        self._close_context()

    def _close_context(self) -> None:
        if self._gatekeeper is not None:
            self._gatekeeper.close()
        self._context.destroy(linger=LINGER_MS)

    # --- in ---------------------------------------------------------------------------------------------

    def _on_message(self, frames: list[bytes | memoryview]) -> None:
        key = frames[0]
        if len(frames) == 3 and frames[1][: len(PROTOCOL_1)] == PROTOCOL_1:
            self._refuse_older(key, frames[1])
            return
        try:
            bodies = _bodies(frames)
        except CortexError as error:
            self._refuse(key, error)
            return
        for body in bodies:
            try:
                request = self._read(key, body)
            except CortexError as error:
                self._refuse(key, error)
            else:
                self._take(key, request)

    def _take(self, key: bytes, request: AnyRequest | Unread) -> None:
        peer = self._peers.get(key)
        if type(request) is Cancel:
            if peer is not None:
                self._cancel(peer, request)
            return
        if peer is None:
            peer = self._peers[key] = Peer(self, key)
        peer._open[request.id] = type(request)
        self._handle(peer, request)

    def _read(self, key: bytes, body: memoryview) -> AnyRequest | Unread:
        """The request in a body; CortexError, with `details["id"]` where the id is known and free."""
        try:
            head = body if len(body) <= LARGE else first_fields(body)
        except msgspec.DecodeError as error:
            raise _no_request(error) from error
        try:
            request = _decode(body) if head is body else self._read_large(head, body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._explain(key, head, error) from error
        if not 0 < request.id <= MAX_ID:
            raise CortexError(Code.BAD_REQUEST, f"an id is from 1 to 2^64 - 1, not {request.id}", param="id")
        if key[0]:
            # A new connection could have it again, and would get the replies to what the last one asked.
            raise CortexError(
                Code.BAD_REQUEST,
                "do not set ZMQ_ROUTING_ID: every connection has a name of its own, which libzmq chooses",
                details={"id": request.id},
            )
        peer = self._peers.get(key)
        if peer is not None and request.id in peer._open and type(request) is not Cancel:
            # Answered under id 0: under its own id it would read as the end of the request that is open.
            raise CortexError(Code.DUPLICATE_ID, f"request {request.id} is still open on this connection")
        if peer is not None and type(request) is not Cancel:
            _check_room(peer, request)
        return request

    def _read_large(self, head: bytes, body: memoryview) -> AnyRequest | Unread:
        """No more of it than `head` says, where somebody else can read the rest."""
        unread = _decode_unread(head)
        if unread.verb not in UNREAD_VERBS:
            if len(body) > MOST:
                text = f"a request of this verb has {MOST} bytes at most, and this one {len(body)}"
                raise msgspec.ValidationError(text)
            return _decode(body)
        if unread.model is None:
            raise msgspec.ValidationError(
                "Object missing required field `model`, which comes before large ones"
            )
        unread.body = body
        return unread

    def _explain(self, key: bytes, head: bytes | memoryview, error: Exception) -> CortexError:
        """Say what is wrong with a body that could not be decoded, and to which request that belongs.

        Args:
            head: the body, or as much of a large one as was looked at.
        """
        try:
            envelope = msgspec.msgpack.decode(head, type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _no_request(error)
        peer = self._peers.get(key)
        known = 0 < envelope.id <= MAX_ID and (peer is None or envelope.id not in peer._open)
        details = {"id": envelope.id} if known else {}
        if envelope.verb not in _VERBS:
            said = (
                f"there is no verb {envelope.verb!r}" if envelope.verb else "a request says its `verb` first"
            )
            return CortexError(Code.UNKNOWN_VERB, said, details=details)
        explained = misread(error)
        explained.details = details
        return explained

    def _cancel(self, peer: Peer, request: Cancel) -> None:
        verb = peer._open.get(request.id)
        if verb is Watch:  # it has no work behind it that would end with a reply of its own
            peer.send(Cancelled(id=request.id))
        if verb is not None:
            self._handle(peer, request)

    def _handle(self, peer: Peer, request: AnyRequest | Unread) -> None:
        try:
            self._handler(peer, request)
        except CortexError as error:
            peer.send(Failed.of(request.id, error))
        except Exception as error:
            verb, trace = type(request).__name__, getattr(request, "trace", "")
            logger.exception("handler failed verb=%s id=%d trace=%a", verb, request.id, trace)
            text = f"{type(error).__name__}: {error}"
            peer.send(Failed(id=request.id, code=Code.INTERNAL, message=text))

    # --- out --------------------------------------------------------------------------------------------

    def _refuse(self, key: bytes, error: CortexError) -> None:
        logger.warning("request refused code=%s reason=%s", error.code, error.message)
        self._answer(key, Failed.of(error.details.pop("id", 0), error))

    def _refuse_older(self, key: bytes, header: bytes) -> None:
        """Say it in the two frames that such a client understands."""
        error = _mismatch(header)
        logger.warning("request refused code=%s reason=%s", error.code, error.message)
        body = self._encoder.encode([Failed.of(0, error)])
        with suppress(zmq.ZMQError):  # it is gone, or does not read
            self._socket.send_multipart([key, HEADER, body], NOBLOCK)
        self._pump.check_soon()

    def _answer(self, key: bytes, reply: Reply) -> None:
        """Reply to what is no open request."""
        self._queue(self._peers.get(key) or Peer(self, key), reply)

    def _queue(self, peer: Peer, reply: Reply | Encoded) -> None:
        if not peer._outbox:
            self._mark(peer)
        peer._outbox.append(reply)

    def _mark(self, peer: Peer) -> None:
        """It has replies to be sent, in the next turn of the loop."""
        self._dirty.append(peer)
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        peers, self._dirty = self._dirty, []
        for peer in peers:
            if peer._stuck is None:  # else: its turn comes in `_retry_blocked`
                self._flush_peer(peer)
        self._pump.check_after_send()

    def _flush_peer(self, peer: Peer) -> None:
        replies, peer._outbox = peer._outbox, []
        try:
            message = self._message(replies)
        except Exception:  # rare and one reply's fault: find it, and let the others pass
            replies = self._encodable(peer, replies)
            message = self._message(replies)
        if len(message) > MAX_MESSAGE:
            message = self._fitting(peer, replies)
        self._transmit(peer, message)
        if peer._outbox and peer._stuck is None:
            self._mark(peer)
        if not peer._open and self._peers.get(peer.key) is peer:
            del self._peers[peer.key]

    def _message(self, replies: list[Reply | Encoded]) -> bytearray:
        message = bytearray(HEADER)
        self._encoder.encode_into(replies, message, len(HEADER))
        return message

    def _fitting(self, peer: Peer, replies: list[Reply | Encoded]) -> bytearray:
        """So many of the replies as a message has room for; the others wait for the next. One that has no
        room at all ends its request: its peer would close the connection, to all."""
        while (size := len(message := self._message(replies))) > MAX_MESSAGE:
            if half := len(replies) // 2:
                replies, peer._outbox = replies[:half], replies[half:] + peer._outbox
            else:
                logger.error("reply too large type=%s id=%d", type(replies[0]).__name__, replies[0].id)
                text = f"the reply has {size} bytes, and a message {MAX_MESSAGE} at most"
                replies = [self._failed(peer, replies[0].id, text)]
        return message

    def _encodable(self, peer: Peer, replies: list[Reply | Encoded]) -> list[Reply | Encoded]:
        """The replies with what cannot be encoded replaced by `Failed`, which ends its request."""
        good: list[Reply | Encoded] = []
        ended = set()
        for reply in replies:
            if reply.id in ended:
                continue
            try:
                self._encoder.encode(reply)
            except Exception as error:
                logger.exception("reply not encodable type=%s id=%d", type(reply).__name__, reply.id)
                ended.add(reply.id)
                good.append(self._failed(peer, reply.id, f"the reply cannot be encoded: {error}"))
            else:
                good.append(reply)
        return good

    def _failed(self, peer: Peer, request_id: int, text: str) -> Failed:
        """What goes in place of a reply that cannot; its request ends with it."""
        peer._outbox = [each for each in peer._outbox if each.id != request_id]
        if peer._open.pop(request_id, None) is not None:
            self._handle(peer, Cancel(id=request_id))
        return Failed(id=request_id, code=Code.INTERNAL, message=text)

    def _transmit(self, peer: Peer, message: bytearray) -> None:
        try:
            self._send(peer.key, NOBLOCK_MORE)
        except zmq.Again:
            if peer._stuck is None:
                peer._stalled = self._loop.time()
                self._blocked.append(peer)
                if self._retry is None:
                    self._retry = self._loop.call_later(RETRY_SECONDS, self._retry_blocked)
            peer._stuck = message
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            peer._stuck = None
            peer._outbox.clear()
            self._lose(peer, "it disconnected")
        else:  # it found room for the whole message
            self._send(message, NOBLOCK, len(message) < LARGE_FRAME)  # a large one is not copied
            peer._stuck = None

    def _retry_blocked(self) -> None:
        self._retry = None
        peers, self._blocked = self._blocked, []
        now = self._loop.time()
        for peer in peers:
            message, stalled = peer._stuck, peer._stalled
            peer._stuck = None
            self._transmit(peer, message)
            if peer._stuck is None:
                if peer._outbox:
                    self._flush_peer(peer)
                continue
            peer._stalled = stalled
            if not peer.gone and (now - stalled > STALL_SECONDS or len(peer._outbox) > MAX_BACKLOG):
                text = "the client did not read its replies"
                peer._outbox = [Failed(id=i, code=Code.INTERNAL, message=text) for i in peer._open]
                self._lose(peer, text)
        self._pump.check_soon()

    def _lose(self, peer: Peer, reason: str) -> None:
        peer.gone = True
        if self._peers.get(peer.key) is peer:
            del self._peers[peer.key]
        if not peer._open:
            return
        logger.warning("peer lost key=%s open=%d reason=%s", peer.key.hex(), len(peer._open), reason)
        peer._open.clear()
        try:
            self._on_gone(peer)
        except Exception:
            logger.exception("on_gone failed key=%s", peer.key.hex())

    def _heartbeat(self) -> None:
        self._beat = self._loop.call_later(HEARTBEAT_SECONDS, self._heartbeat)
        for peer in list(self._peers.values()):
            watch = next((number for number, verb in peer._open.items() if verb is Watch), 0)
            self._queue(peer, Heartbeat(id=watch))


def _bodies(frames: list[bytes | memoryview]) -> Sequence[memoryview]:
    """Those of the requests in a message; CortexError where it is none of the protocol."""
    if len(frames) != 2:
        raise CortexError(
            Code.BAD_FRAME, f"a message is one frame, header and body; this one has {len(frames) - 1}"
        )
    frame = frames[1]
    if (header := bytes(frame[: len(HEADER)])) != HEADER:
        _check_header(header)
    body = memoryview(frame)[len(HEADER) :]
    if not body or not _begins_array(body[0]):
        return (body,)
    if len(body) > BYTES_TOGETHER:
        text = f"requests in one message have {BYTES_TOGETHER} bytes at most, and these {len(body)}"
        raise CortexError(Code.BAD_FRAME, text)
    try:
        return list(map(memoryview, _decode_several(body)))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CortexError(Code.BAD_FRAME, f"the body is no array of requests: {error}") from error


def _check_room(peer: Peer, request: AnyRequest | Unread) -> None:
    """QUEUE_FULL where a peer has as many requests open as it may."""
    has, most = len(peer._open), MAX_OPEN
    if type(request) in _FOLLOWING:
        has, most = sum(verb in _FOLLOWING for verb in peer._open.values()), MAX_FOLLOWED
    if has >= most:
        text = f"this connection has {has} such requests open, as many as it may"
        raise CortexError(Code.QUEUE_FULL, text, details={"id": request.id})


def _no_request(error: Exception) -> CortexError:
    return CortexError(Code.BAD_FRAME, f"the body is no msgpack map of a request: {error}")


def _begins_array(first: int) -> bool:
    """Whether what begins with that byte is one, in msgpack."""
    return first >> 4 == 0x9 or first in (0xDC, 0xDD)


def _check_header(header: bytes) -> None:
    """Refuse what is not our header; another minor version of it is welcome."""
    if len(header) != 4 or header[:2] != HEADER[:2]:
        raise CortexError(Code.BAD_FRAME, f"the header is {header[:16].hex()}, and not {HEADER.hex()}")
    if header[2] != PROTOCOL_MAJOR:
        raise _mismatch(header)


def _mismatch(header: bytes) -> CortexError:
    theirs, ours = f"{header[2]}.{header[3]}", f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    return CortexError(
        Code.PROTOCOL_MISMATCH,
        f"the client speaks protocol {theirs}, this neuron {ours}; have both of one version of cortex",
    )


def check_keys(endpoint: str, secret: str | None, allowed: Sequence[str], insecure: bool) -> None:
    """CortexError where a `Server` would refuse its arguments of these names."""
    if secret is None and not insecure and not _is_local(endpoint):
        raise CortexError(
            Code.BAD_REQUEST,
            f"{endpoint} can be reached from other hosts and has no keys: make some with "
            "`cortex keygen`, or set `insecure: true` where the network itself is safe",
        )
    if (secret is None) != (not allowed):
        raise CortexError(
            Code.BAD_REQUEST, "a secret key and the public keys of allowed clients belong together"
        )


def _is_local(endpoint: str) -> bool:
    """Whether only processes of this host can reach an endpoint."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")
