"""Numbers of bytes as people write and read them: text such as `12GiB`."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes meant by `text`: kB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB of 1024.

    Raises:
        ValueError: when it is no size, with a sentence for people.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("Expected a size such as 12GiB, 500MB or a number of bytes")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))


def gib(size: int, digits: int = 2) -> str:
    """`size` bytes in GiB, with so many digits behind the point."""
    return f"{size / (1 << 30):.{digits}f} GiB"
