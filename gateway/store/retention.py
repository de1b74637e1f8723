"""What is kept, and for how long: nothing for ever.

What was used longest ago goes first. Whoever continues a response uses all that it continues, and of those
used at once the latest goes first: so a chain is never cut in its middle.
"""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

from gateway.refusals import STORE_UNAVAILABLE
from ipc.errors import CortexError

BATCH = 16  # that leave before the size is looked at again


class Limits(NamedTuple):
    """How long, and how much, is kept."""

    max_age: float  # seconds, from when it was last used
    max_size: int  # bytes of the file


def make_room(db: sqlite3.Connection, limits: Limits, keep: str) -> None:
    """Delete what is too old, then what was used longest ago, until the file holds no more than it may.

    Args:
        keep: the id of what has just been written, which stays.

    Raises:
        CortexError: STORE_UNAVAILABLE when that alone is too much.
    """
    oldest = time.time() - limits.max_age
    while _delete(db, "used < ? AND id != ?", (oldest, keep)):
        pass
    while (size := size_of(db)) > limits.max_size:
        if not _delete(db, "id != ?", (keep,)):
            text = (
                f"the store of responses has room for {limits.max_size} bytes (store.max_size), "
                f"and this takes {size}"
            )
            raise CortexError(STORE_UNAVAILABLE, text)


def size_of(db: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    (pages,), (free,), (page,) = (
        db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * page


def forget(db: sqlite3.Connection, holder: str) -> None:
    """Delete a response or a conversation, with all that belongs to it."""
    for table, column in (
        ("responses", "id"),
        ("conversations", "id"),
        ("events", "response"),
        ("conversation_items", "conversation"),
        ("holders", "holder"),
    ):
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (holder,))


def _delete(db: sqlite3.Connection, which: str, values: tuple[object, ...]) -> int:
    """Delete the first few of those; how many there were. What is being worked on stays."""
    rows = db.execute(
        f"SELECT id, used, created FROM responses WHERE owner IS NULL AND {which} "
        f"UNION ALL SELECT id, used, created FROM conversations WHERE {which} "
        "ORDER BY used, created DESC LIMIT ?",
        (*values, *values, BATCH),
    ).fetchall()
    for holder, _, _ in rows:
        forget(db, holder)
    return len(rows)
