"""JSON of answers in any dialect."""

from __future__ import annotations

import msgspec

encode = msgspec.json.encode


def json_string(text: str) -> bytes:
    """`text` in JSON, on what every client takes for one line.

    Some split a stream wherever Unicode knows a line end, though server-sent events know only CR and LF.
    """
    encoded = encode(text)
    if not text.isascii():
        for char, escape in (
            (b"\xc2\x85", b"\\u0085"),
            (b"\xe2\x80\xa8", b"\\u2028"),
            (b"\xe2\x80\xa9", b"\\u2029"),
        ):
            encoded = encoded.replace(char, escape)
    return encoded
