"""JSON of answers in any dialect."""

from __future__ import annotations

import msgspec

encode = msgspec.json.encode


def json_string(text: str) -> bytes:
    """`text` in JSON, on what every client takes for one line."""
    encoded = encode(text)
    return encoded if text.isascii() else on_one_line(encoded)


def on_one_line(data: bytes) -> bytes:
    """JSON without the line ends of Unicode.

    Some clients split a stream wherever there is one, though server-sent events know only CR and LF.
    """
    for char, escape in (
        (b"\xc2\x85", b"\\u0085"),
        (b"\xe2\x80\xa8", b"\\u2028"),
        (b"\xe2\x80\xa9", b"\\u2029"),
    ):
        data = data.replace(char, escape)
    return data
