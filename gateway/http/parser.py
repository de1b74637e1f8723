"""gunicorn's parser of requests, which takes a whole header at once where nothing is wrong with it.

By itself it looks at each byte in Python, which costs more the more a client says of itself.
"""

from __future__ import annotations

import re

from gunicorn.asgi.parser import InvalidHeader, PythonProtocol

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110, 5.6.2
_is_token = re.compile(_TOKEN).fullmatch
# A name, and a value with the white space around it. It is looked for where a line begins and nowhere else: a
# long line that is no field would take the square of its length.
_fields = re.compile(rb"^(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE).findall
MOST_DIGITS = 18  # of a length
_BESIDE = len(":\r\n")  # of a line, its name and its value


class Parser(PythonProtocol):
    """The same parser. What it does not take at once it leaves to its base, which also says what is wrong."""

    __slots__ = ()

    def _parse_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n", 0, self._limit_request_field_size)
        if end < 0:  # it is not all there, or there is none, or it is a long one
            return super()._parse_headers()
        end += 2
        fields = _fields(bytes(self._buffer[:end]))
        count = self._header_count + len(fields)
        is_all = sum([len(name) + len(value) + _BESIDE for name, value in fields]) == end
        if not is_all or 0 < self._limit_request_fields < count:
            return super()._parse_headers()
        self._headers_list += [(name.lower(), value.strip(b" \t")) for name, value in fields]
        self._header_count, self._scan_from = count, 0
        del self._buffer[: end + 2]
        self._finalize_headers()
        return True

    def _finalize_headers(self) -> None:
        if any(name == b"content-length" and len(value) > MOST_DIGITS for name, value in self._headers_list):
            raise InvalidHeader("Invalid Content-Length value")  # Python makes no number of thousands of them
        super()._finalize_headers()

    def _is_valid_token(self, data: bytes) -> bool:
        return _is_token(data) is not None
