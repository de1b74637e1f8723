"""gunicorn's parser of requests, which takes a line or a whole header at once where nothing is wrong with it.

By itself it looks at each byte in Python, which costs more the more a client says of itself.
"""

from __future__ import annotations

import re

from gunicorn.asgi.parser import InvalidHeader, PythonProtocol

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110, 5.6.2
_is_token = re.compile(_TOKEN).fullmatch
# A request line: a conventional method, a path of ours with what may follow it, and the version of today.
_request_line = re.compile(rb"([A-Z]{3,20}) (/[\x21-\x7e]*) HTTP/1\.1\r\n").match
# A name, and a value with the white space around it. It is looked for where a line begins and nowhere else: a
# long line that is no field would take the square of its length.
_fields = re.compile(rb"^(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE).findall
MOST_DIGITS = 18  # of a length
MOST_SEARCHED = 1 << 18  # bytes of a request that is refused
_VERSION = (1, 1)


class Parser(PythonProtocol):
    """The same parser. What it does not take at once it leaves to its base, which also says what is wrong."""

    __slots__ = ()

    def _parse_request_line(self) -> bool:
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

    def header(self, name: bytes) -> str | None:
        """The value of a header, as far as the request came; of one that is refused, too."""
        fields = self._headers_list
        if self._state in ("request_line", "headers"):
            fields = [*fields, *_fields(self._buffer, 0, MOST_SEARCHED)]
        return next((value.strip().decode("latin-1") for key, value in fields if key.lower() == name), None)

    def _finalize_headers(self) -> None:
        for name, value in self._headers_list:
            if len(value) > MOST_DIGITS and name == b"content-length":  # Python takes no thousands of them
                raise InvalidHeader("Invalid Content-Length value")
        super()._finalize_headers()

    def _is_valid_token(self, data: bytes) -> bool:
        return _is_token(data) is not None
