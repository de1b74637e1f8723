"""gunicorn's parser of requests, which takes a line or a whole header at once where nothing is wrong with it.

By itself it looks at each byte in Python, which costs more the more a client says of itself. It also takes an
address in full for a path, where a client sends that as to a proxy, and does not miss the host that HTTP/1.1
asks for.
"""

from __future__ import annotations

import re

from gunicorn.asgi.parser import (
    InvalidHeader,
    InvalidHeaderName,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    ParseError,
    PythonProtocol,
    UnsupportedTransferCoding,
)

from gateway.refusals import shown

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110, 5.6.2
_is_token = re.compile(_TOKEN).fullmatch
# A request line: a conventional method, a path of ours with what may follow it, and the version of today.
_request_line = re.compile(rb"([A-Z]{3,20}) (/[\x21-\x7e]*) HTTP/1\.1\r\n").match
# A name, and a value with the white space around it. It is looked for where a line begins and nowhere else: a
# long line that is no field would take the square of its length.
_fields = re.compile(rb"^(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE).findall
_is_field = re.compile(_TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*").fullmatch
# An address in full, as a client has it that takes us for a proxy: RFC 9112, 3.2.2.
_whole_address = re.compile(rb"https?://([^/?#@]+)([/?#].*)?", re.IGNORECASE).fullmatch
_is_host = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*", re.ASCII).fullmatch
_compressed = re.compile(rb"\b(?:x-)?(?:gzip|deflate|compress)\b", re.IGNORECASE).search
# What gunicorn says only the offending word of.
_WRONG: dict[type[ParseError], str] = {
    InvalidRequestMethod: "{} is no method of HTTP",
    InvalidHTTPVersion: "{} is not spoken here, HTTP/1.1 is",
    InvalidHeaderName: "{} cannot be the name of a header",
    UnsupportedTransferCoding: "the transfer coding {} is not supported, chunked is",
}
TLS = 0x16  # the first byte of what a client says that speaks it
MOST_DIGITS = 18  # of a length
MOST_SEARCHED = 1 << 18  # bytes of a request that is refused
_VERSION = (1, 1)


class Parser(PythonProtocol):
    """The same parser. What it does not take at once it leaves to its base, which also says what is wrong."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        try:
            super().feed(data)
        except tuple(_WRONG) as error:
            raise type(error)(_WRONG[type(error)].format(shown(str(error)))) from None

    def _parse_request_line(self) -> bool:
        if self._buffer[0] == TLS:
            raise InvalidRequestLine("this is TLS, and HTTP is spoken here without it")
        line = _request_line(self._buffer)
        if line is None or 0 < self._limit_request_line < line.end() - 2:
            return super()._parse_request_line()
        self.method, self.path = line.groups()
        self.http_version = _VERSION
        self._scan_from = 0
        del self._buffer[: line.end()]
        self._state = "headers"
        return True

    def _parse_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n", 0, self._limit_request_field_size)
        if end < 0:  # it is not all there, or there is none, or it is a long one
            return super()._parse_headers()
        end += 2
        fields = _fields(self._buffer, 0, end)
        count = self._header_count + len(fields)
        is_all = len(fields) == self._buffer.count(b"\n", 0, end)  # each is a line
        if not is_all or 0 < self._limit_request_fields < count:
            return super()._parse_headers()
        self._headers_list += [(name.lower(), value.strip(b" \t")) for name, value in fields]
        self._header_count, self._scan_from = count, 0
        del self._buffer[: end + 2]
        self._finalize_headers()
        return True

    def _find_line(self, limit: int, error: Exception) -> int:
        end = super()._find_line(limit, error)
        if end > 0 and self._chunk_state == "trailer" and _is_field(self._buffer, 0, end) is None:
            line = self._buffer[:end].decode("latin-1")
            raise InvalidHeader(f"{shown(line)}, behind the body, is no field")
        return end

    @property
    def is_plain_body(self) -> bool:
        """Whether what comes next is of a body of known length."""
        return self._state == "body"

    @property
    def chunk_to_come(self) -> int:
        """Bytes of the body that are announced by a chunk's size, and are not there."""
        return self._chunk_remaining

    def header(self, name: str) -> str | None:
        """The value of a header, as far as the request came; of one that is refused, too."""
        fields = self._headers_list
        if self._state in ("request_line", "headers"):
            fields = [*fields, *_fields(self._buffer, 0, MOST_SEARCHED)]
        wanted = name.encode()
        return next((value.strip().decode("latin-1") for key, value in fields if key.lower() == wanted), None)

    def _finalize_headers(self) -> None:
        hosts: list[bytes] = []
        for name, value in self._headers_list:
            if name == b"host":
                hosts.append(value)
            elif len(value) > MOST_DIGITS and name == b"content-length":  # Python takes no thousands of them
                raise InvalidHeader("Invalid Content-Length value")
        if not hosts and self.http_version == _VERSION:
            raise InvalidHeader("there is no Host header, which HTTP/1.1 asks for")
        if len(hosts) == 1 and not _is_host(hosts[0]):  # the base refuses several
            raise InvalidHeader(f"{shown(hosts[0].decode('latin-1'))} is no host")
        if b"://" in self.path and not self.path.startswith(b"/"):
            self._take_whole_address()
        super()._finalize_headers()
        for name, value in self._headers_list if self.is_chunked else ():
            if name == b"transfer-encoding" and (coding := _compressed(value)) is not None:
                raise UnsupportedTransferCoding(coding[0].decode())  # or its body would be taken as it is

    def _take_whole_address(self) -> None:
        """Of an address in full its path is the path, and its host counts, whatever the header says."""
        address = _whole_address(self.path)
        if address is None:
            raise InvalidRequestLine(f"{shown(self.path.decode())} is no address of HTTP")
        host, path = address[1], address[2] or b"/"
        self.path = path if path.startswith(b"/") else b"/" + path
        others = [field for field in self._headers_list if field[0] != b"host"]
        repeated = len(self._headers_list) - len(others) or 1  # which the base refuses
        self._headers_list = [*others, *[(b"host", host)] * repeated]

    def _is_valid_token(self, data: bytes) -> bool:
        return _is_token(data) is not None
