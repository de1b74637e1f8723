"""An API key as text, and what is kept of it.

A key is 32 random bytes. Nobody guesses one, so its plain SHA-256 is enough to know it by, and nothing that
is kept, logged or shown leads back to it.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import NamedTuple

PREFIX = "sk-cortex-"  # clients want "sk-", and people see whose it is


class NewKey(NamedTuple):
    """A key that has just been made: the one time that its text is there."""

    text: str
    id: str  # by which people and tables call it
    digest: bytes


def make() -> NewKey:
    """One that nobody has had before."""
    text = PREFIX + secrets.token_urlsafe(32)
    return NewKey(text, f"key_{secrets.token_hex(6)}", digest(text))


def is_ours(text: str) -> bool:
    """Whether it has the form of our keys; clients that need none send others."""
    return text.startswith(PREFIX)


def digest(text: str) -> bytes:
    """What is kept of a key."""
    return sha256(text.encode()).digest()
