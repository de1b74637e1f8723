"""Which gateway processes have others in their place, since the configuration was read again.

gunicorn ends these with the signal that ends all when the gateway stops, and sends it again and again. They
may take their time until it stops: the master says here, in memory that it shares with all of them, who they
are, and when that is.
"""

from __future__ import annotations

import mmap

_BYTES = 8
# An age as gunicorn counts processes: those of up to that age are replaced. Then, whether all end.
_said = mmap.mmap(-1, _BYTES + 1)
_own: int | None = None  # the age of this process, which is no master


def replace(age: int) -> None:
    """In the master: others come in place of the process of that age, and of all before it."""
    _said[:_BYTES] = age.to_bytes(_BYTES, "little")


def is_replaced(age: int) -> bool:
    """Whether others are in place of the process of that age."""
    return age <= int.from_bytes(_said[:_BYTES], "little")


def serve_as(age: int) -> None:
    """In a process: that is its age."""
    global _own
    _own = age


def am_replaced() -> bool:
    """Whether others are in place of this process."""
    return _own is not None and is_replaced(_own)


def end_all() -> None:
    """In the master: the gateway stops."""
    _said[_BYTES] = 1


def do_all_end() -> bool:
    """Whether the gateway stops."""
    return _said[_BYTES] == 1
