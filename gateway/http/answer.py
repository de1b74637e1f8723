"""One answer over HTTP/1.1. gunicorn's own way to send is ready for whatever an application may do.

Ours does little: there is a beginning, then the body, with its length or in chunks, and nothing after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gunicorn.asgi import protocol
from gunicorn.http.errors import InvalidResponseHeader

VERSION = (1, 1)
BODILESS = frozenset((204, 304))  # statuses

_LAST_CHUNK = b"0\r\n\r\n"


class HttpAnswer:
    """To one request, as it is sent.

    Args:
        connection: that of `gateway.http.connections`.
        closes: nothing follows it on its connection.

    Attributes:
        closes: as it was told; also where it begins before the request is all there.
        has_begun: its status is known.
        is_complete: its last byte was sent.
    """

    __slots__ = ("_connection", "_has_body", "_is_chunked", "closes", "has_begun", "is_complete")

    def __init__(self, connection: protocol.ASGIProtocol, closes: bool) -> None:
        self._connection, self.closes = connection, closes
        self.has_begun = self.is_complete = False
        self._has_body, self._is_chunked = True, False

    async def send(self, message: dict[str, Any]) -> None:
        """As ASGI has it. What is for a client that is gone goes nowhere."""
        connection = self._connection
        if connection._closed:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if body and self._has_body:
            connection._send_body(body, self._is_chunked, is_last, len(body))
            if connection._flow_control.write_paused:
                await connection._flow_control.drain()
        elif is_last:
            connection._safe_write((connection._response_buffer or b"") + _LAST_CHUNK * self._is_chunked)
            connection._response_buffer = None
        self.is_complete = is_last

    def _begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Have the beginning sent with the first of the body.

        Raises:
            InvalidResponseHeader: a line end in a header, which would begin another one.
        """
        self._has_body = status not in BODILESS
        self._is_chunked = self._has_body and b"content-length" not in dict(headers)
        self.closes = self.closes or self._connection.lacks_body()
        fields = b"\r\n".join([*map(b": ".join, headers), b""])
        if not fields.count(b"\n") == fields.count(b"\r") == len(headers):
            raise InvalidResponseHeader("a line end")
        self._connection._response_buffer = b"".join(
            (
                protocol._get_cached_status_line(VERSION, status),
                fields,
                b"transfer-encoding: chunked\r\n" if self._is_chunked else b"",
                protocol._CACHED_SERVER_HEADER,
                protocol._get_cached_date_header(),
                b"Connection: close\r\n" if self.closes else b"",
                b"\r\n",
            )
        )
        self._connection._body_receiver.expect_continue = False
        self.has_begun = self._connection._answering = True
