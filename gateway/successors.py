"""Which gateway processes have others in their place, since the configuration was read again.

gunicorn ends these with the signal that ends all when the gateway stops. They may take their time: the master
says here, in memory that it shares with all of them, who they are.
"""

from __future__ import annotations

import mmap

_BYTES = 8
_replaced = mmap.mmap(-1, _BYTES)  # an age as gunicorn counts processes: those of up to that age


def replace(age: int) -> None:
    """In the master: others come in place of the process of that age, and of all before it."""
    _replaced[:_BYTES] = age.to_bytes(_BYTES, "little")


def is_replaced(age: int) -> bool:
    """Whether others are in place of the process of that age."""
    return age <= int.from_bytes(_replaced[:_BYTES], "little")
