"""gunicorn's asgi worker, with what it leaves out.

It waits for ever for a header that does not come, and for a client that does not read; closes an idle
connection while a request is in the socket already, waits for idle ones when the process is to stop, does not
let the application end what it has open when it is to stop at once, and says what it refuses in plain text,
which a reset of the connection may overtake.
"""

from __future__ import annotations

import asyncio
import select
from contextlib import suppress
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn.asgi import protocol
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from gateway import config, successors
from gateway.http.answer import VERSION, HttpAnswer
from gateway.http.parser import Parser
from gateway.http.request_id import HEADERS, request_id
from gateway.refusals import BUG, Refusal, log_refusal

if TYPE_CHECKING:
    from gateway.http.browsers import Browsers

FIELDS = 4  # a whole header is at most so many times as long as one field of it may be
LINGER_SECONDS = 2.0  # that a refused client has to stop sending and to read why,
UPLOAD_SECONDS = 10.0  # and one that is in the middle of a body
SLICE = 8 << 10  # bytes that are parsed in one go: in chunks of a byte each they take some milliseconds
# In the scope of a request whose body did not come whole: its refusal; None: it ended.
CUT = "cortex.cut"
LOOK_AGAIN_SECONDS = 0.1
# That a connection stays where the process is to end, and after its last answer: a client that was not told
# may send one more request, and is told in its answer.
LAST_SECONDS = 2.0
# That a process may take for its requests which has another in its place: streams of tokens last.
REPLACED_SECONDS = 3600.0
QUICK_SECONDS = 5.0  # that the application has to end what it has open, where the process is to end at once


class Worker(gasgi.ASGIWorker):
    """One gateway process.

    Attributes:
        connections: that are open.
        is_ending: it takes no further ones, and no further requests after these.
        header_seconds: until a header has to be there.
        header_limit: bytes of a whole one.
        body_limit: bytes of a body.
        body_seconds: until a body has to be there, after its header; and that a client may take nothing of
            what waits for it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ours = (config.in_force or config.GatewayConfig()).gateway
        self.connections: set[Connection] = set()
        self.is_ending = False
        self._origins, self._hosts = ours.cors_origins, ours.hosts
        self.header_seconds = ours.header_seconds
        self.header_limit = FIELDS * ours.header_limit
        self.body_limit, self.body_seconds = ours.body_limit, ours.body_seconds

    @cached_property
    def browsers(self) -> Browsers:
        """Which pages may read what is refused."""
        from gateway.http.browsers import Browsers  # not in the master, which serves nobody

        return Browsers(self._origins, self._hosts)

    async def _serve(self) -> None:
        gasgi.ASGIProtocol = Connection  # where it looks for the class of a connection,
        successors.serve_as(self.age)
        protocol.PythonProtocol = Parser  # and where that looks for the class of its parser
        await super()._serve()

    def handle_exit_signal(self) -> None:
        """SIGTERM. To gunicorn it lives until nothing is open: else that ends connections which clients may
        use again, for all that they were told."""
        if not self.is_ending:
            self.is_ending = True
            self._ending = self.loop.create_task(self._end())

    async def _end(self) -> None:
        began, seconds = self.loop.time(), self.cfg.graceful_timeout - LINGER_SECONDS
        takes_its_time = successors.is_replaced(self.age)
        until = began + (REPLACED_SECONDS if takes_its_time else seconds)
        try:
            for server in self.servers:
                server.close()
            while self.connections and (now := self.loop.time()) < until:
                if takes_its_time and successors.do_all_end():
                    takes_its_time, until = False, now + seconds
                if now - began >= LAST_SECONDS:
                    for connection in tuple(self.connections):
                        connection.end_if_idle(LAST_SECONDS)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
            if left := len(self.connections):
                self.log.warning("connections are ended that still had requests count=%d", left)
            for connection in tuple(self.connections):
                connection.transport.abort()
        finally:
            self.alive = False

    async def _shutdown(self) -> None:
        for server in self.servers:
            server.close()
        for connection in tuple(self.connections):
            connection.end_if_idle()
        await super()._shutdown()
        if self._quick_shutdown and self.lifespan is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.lifespan.shutdown(), QUICK_SECONDS)


class Reading:
    """What the application reads of a request, as ASGI has it.

    gunicorn would take a pause for the end of a body; how long a body may take, the connection's timer says.
    And the application would not begin before a piece of the body is there, which a client that expects to be
    told to go on does not send: the first piece of such a one is empty.
    """

    def __init__(self, connection: Connection, scope: dict[str, Any]) -> None:
        self._connection, self._scope = connection, scope
        self._receiver = connection._body_receiver
        self._is_awaited = self._receiver.expect_continue

    async def receive(self) -> dict[str, Any]:
        """The next piece, or word that the client is gone. Where that is in the middle of the body the scope
        says so, or what came would be taken for all of it."""
        if self._is_awaited:
            self._is_awaited = False
            return {"type": "http.request", "body": b"", "more_body": True}
        event = await self._receiver.receive()
        while self._receiver._body_wait_expired:
            self._receiver._body_wait_expired = False
            event = await self._receiver.receive()
        if event["type"] == "http.disconnect" and not self._receiver._complete:
            self._scope[CUT] = self._connection.refusal
        return event


class Connection(ASGIProtocol):
    """One client's connection. What it says is in `ASGIProtocol`; here is when it ends.

    Attributes:
        refusal: with which it ends.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._timer: Any = None  # runs while a header or a body is waited for, but on an idle connection
        self._unread: Any = None  # a timer that runs while the client does not take what waits for it
        self._header_bytes = 0  # that came, of one that is not complete
        self._body_bytes = 0  # that came, of the last request
        self._chunks: list[bytes] = []  # that came in this turn
        self._ignored = 0  # bytes that came after the last answer of all
        self._unparsed = bytearray()  # what came, but for what the parser has
        self._idle_since = 0.0  # by the loop's clock
        self._answering = False  # whether the answer to the last request has begun
        self.refusal: Refusal | None = None
        # Whether gunicorn was told to tell of requests, which it does itself.
        watchers = self._pre_request, self._post_request
        self._is_watched = worker.log.access_log_enabled or watchers != (None, None)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.worker.connections.add(self)
        self._idle_since = self.worker.loop.time()
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        self._stop_timer()
        self._stop_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.worker.loop.call_later(self.worker.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_unread()
        super().resume_writing()

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        """Parse it, a little in each turn of the loop; what comes after the end goes nowhere."""
        if self._unparsed:
            self._unparsed += data
        elif not self._closed:
            super().data_received(data)
        else:
            self._ignored += len(data)
            if self._ignored > self.worker.body_limit:
                self.transport.close()

    def _put_off(self, data: bytes) -> None:
        """Have it parsed in the next turn of the loop, and no more read before that."""
        if not self._unparsed:
            self.worker.loop.call_soon(self._parse_on)
        self._unparsed[:0] = data
        self._pause_reading()

    def _parse_on(self) -> None:
        data = bytes(self._unparsed)
        self._unparsed.clear()
        self.data_received(data)
        self._maybe_resume_reading()

    def _resume_reading(self) -> None:
        if not self._unparsed:
            super()._resume_reading()

    def end_if_idle(self, seconds: float = 0.0) -> None:
        """Close it where it has been idle for so long: it has no request, and none is on its way."""
        if self._is_idle() and self.worker.loop.time() - self._idle_since >= seconds:
            self._close_transport()
            self._request_ready.set()

    def _is_idle(self) -> bool:
        is_between = self._is_between_requests() and not self._header_bytes and not self._unparsed
        return is_between and not self._has_unread()

    def _is_between_requests(self) -> bool:
        ready = self._request_ready  # None: it speaks something else than HTTP/1
        return ready is not None and not ready.is_set() and not self._closed

    def lacks_body(self) -> bool:
        """Whether some of the body of the last request is still to come."""
        receiver = self._body_receiver
        return receiver is not None and not receiver._complete and not self._closed

    def _await_header(self) -> None:
        self._timer = self.worker.loop.call_later(self.worker.header_seconds, self._on_header_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_header_timeout(self) -> None:
        if self._header_bytes:
            self._refuse(408, f"the header took longer than {self.worker.header_seconds:g} seconds")
        else:
            self._close_transport()
            self._request_ready.set()

    def _on_body_timeout(self) -> None:
        self._refuse(408, f"the body took longer than {self.worker.body_seconds:g} seconds")

    def _has_unread(self) -> bool:
        """Whether the socket holds what the event loop did not come to read yet."""
        if self.transport.is_closing():  # its socket may be gone
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _refuse(self, status: int, message: str) -> None:
        self._send_error_response(status, message)
        self._close_transport()

    # --- what `ASGIProtocol` calls ----------------------------------------------------------------------

    async def _serve_http_request(self, request: Any, sockname: Any, peername: Any) -> bool:
        """Have it answered; whether its connection stays.

        There is no task of its own for it, which is for applications that go on after their answer.
        """
        if self._is_watched or request.version != VERSION or request.method == "HEAD":
            return await self._handle_http_request(request, sockname, peername)
        await asyncio.sleep(0)  # who was told in this turn that a neuron is lost says so first
        answer = HttpAnswer(self, self._will_close(request, False))
        scope = self._build_http_scope(request, sockname, peername)
        try:
            await self.app(scope, Reading(self, scope).receive, answer.send)
        except asyncio.CancelledError:  # the client left
            return False
        except Exception:
            self.log.exception("request failed")
            answer.closes = True
        if not answer.has_begun and not self.transport.is_closing():
            self._send_error_response(500, BUG)
        return answer.is_complete and not answer.closes and self.worker.alive

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Parse what came, now or while the last request was answered; False: the connection is over."""
        if len(data) > SLICE and not self._callback_parser.is_plain_body:
            self._put_off(data[SLICE:])
            data = data[:SLICE]
        if not super()._feed_callback_parser(data):
            return False
        if self._is_between_requests():
            self._header_bytes += len(data)
            if self._header_bytes > self.worker.header_limit:
                self._refuse(431, f"the header is longer than {self.worker.header_limit} bytes")
                return False
            if self._timer is None:
                self._cancel_keepalive_timer()
                self._await_header()
        elif self.lacks_body():
            self._hand_over()
            if self._body_bytes + self._callback_parser.chunk_to_come > self.worker.body_limit:
                self._refuse(413, f"the body is larger than {self.worker.body_limit} bytes")
                return False
            if self._timer is None:
                self._timer = self.worker.loop.call_later(self.worker.body_seconds, self._on_body_timeout)
        return True

    def _on_headers_complete(self) -> Any:
        self._stop_timer()
        self._header_bytes = self._body_bytes = 0
        self._answering = False
        return super()._on_headers_complete()

    def _on_body(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        self._chunks.append(chunk)

    def _hand_over(self) -> None:
        """Let the application have what came: many small chunks as one."""
        if self._chunks:
            super()._on_body(b"".join(self._chunks))
            self._chunks.clear()

    def _on_message_complete(self) -> None:
        self._stop_timer()
        self._hand_over()
        super()._on_message_complete()

    def _arm_keepalive_timer(self) -> None:
        if self._header_bytes:  # it is not idle
            return
        self._idle_since = self.worker.loop.time()
        if self._keepalive_handle is None:
            super()._arm_keepalive_timer()

    def _cancel_keepalive_timer(self) -> None:
        """It runs on while requests come, and looks at its end whether the connection was idle so long."""
        if self._closed:
            super()._cancel_keepalive_timer()

    def _keepalive_timeout(self) -> None:
        self._keepalive_handle = None
        if not self._is_between_requests() or self._header_bytes:
            return  # a request may have been read in the same turn of the loop, and its task not have begun
        left = self._idle_since + self._keepalive - self.worker.loop.time()
        if left <= 0 and not self._has_unread():
            super()._keepalive_timeout()
            return
        wait = max(left, LOOK_AGAIN_SECONDS)
        self._keepalive_handle = self.worker.loop.call_later(wait, self._keepalive_timeout)

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """After HTTP/1.0 it does, whatever the client asks for: nothing else ends a stream there."""
        closes = self.worker.is_ending or request.version < VERSION
        return closes or super()._will_close(request, response_requires_close)

    def _send_response_start(self, *args: Any, **kwargs: Any) -> None:
        self._answering = True
        super()._send_response_start(*args, **kwargs)

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """The answer to what is no HTTP, and a line of the log; nothing where an answer to it has begun."""
        if self.refusal is not None or (self._answering and self._request_ready.is_set()):
            return
        # The master has this module, too, and what counts must not be there before its directory is.
        from gateway.dialects import no_header
        from gateway.dialects.registry import refuse_shape

        parser = self._callback_parser
        header = parser.header if isinstance(parser, Parser) else no_header
        named = request_id(header("x-request-id"))
        self.refusal = Refusal.of_http(status, message, named)
        method, path = (getattr(parser, name, None) or b"" for name in ("method", "path"))
        log_refusal(self.refusal, named, method.decode("latin-1"), path.decode("latin-1").partition("?")[0])
        status, body = refuse_shape(header)(self.refusal)
        headers = dict.fromkeys(HEADERS, named) | {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        headers |= dict(self._for_pages()) | dict(extra_headers)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._safe_write("\r\n".join((*lines, "", "")).encode("latin-1") + body)

    def _for_pages(self) -> list[tuple[str, str]]:
        """Headers by which the page that asks may read a refusal, where it is one that may ask."""
        parser, address = self._callback_parser, self.transport.get_extra_info("sockname")
        if not isinstance(parser, Parser) or not isinstance(address, tuple):
            return []
        return self.worker.browsers.of_refusal(parser.header("origin"), parser.header("host"), address[0])

    def _close_transport(self) -> None:
        """Where more may come, stay until the client had time to read what it was told: a socket that is
        closed while more comes is reset, and takes what was said with it."""
        is_early = self.lacks_body()
        if self._closed or not (self.refusal is not None or is_early):
            super()._close_transport()
            return
        self._closed = True
        self._unparsed.clear()
        self._stop_timer()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._resume_reading()
        self.worker.loop.call_later(UPLOAD_SECONDS if is_early else LINGER_SECONDS, self.transport.close)
        if self._body_receiver is not None:
            self._body_receiver.signal_disconnect()
        self._request_ready.set()
