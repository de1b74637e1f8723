"""Stored conversations: items in their order, which responses read and add to."""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from operator import methodcaller
from typing import Any

import msgspec

from gateway.store.retention import forget

encode = partial(msgspec.json.encode, enc_hook=methodcaller("whole"))  # of lists that are written already
_decode = msgspec.json.decode
Object = dict[str, Any]

# What a model reads of a large item, in SQL: all but the log-probabilities of its tokens. To read those would
# keep the interpreter to itself for tenths of a second; SQLite leaves it to others meanwhile.
LARGE = 256 << 10  # bytes
SPOKEN = "json_replace({0}, '$.content[0].logprobs', json('[]'))"


def create(db: sqlite3.Connection, account: str, conversation: Object, items: list[Object]) -> None:
    """Keep a new conversation, which begins with `items`."""
    now = time.time()
    db.execute(
        "INSERT INTO conversations VALUES (?, ?, ?, ?, ?)",
        (conversation["id"], account, now, now, encode(conversation)),
    )
    append(db, account, conversation["id"], items)


def get(db: sqlite3.Connection, account: str, conversation_id: str) -> Object | None:
    """The conversation of that account, as it was kept; None where there is none."""
    row = db.execute(
        "SELECT body FROM conversations WHERE id = ? AND account = ?", (conversation_id, account)
    ).fetchone()
    return None if row is None else _decode(row[0])


def update(db: sqlite3.Connection, account: str, conversation_id: str, metadata: Object) -> Object | None:
    """Replace the metadata; the conversation, or None where there is none."""
    conversation = get(db, account, conversation_id)
    if conversation is not None:
        conversation["metadata"] = metadata
        db.execute(
            "UPDATE conversations SET body = ?, used = ? WHERE id = ?",
            (encode(conversation), time.time(), conversation_id),
        )
    return conversation


def delete(db: sqlite3.Connection, account: str, conversation_id: str) -> bool:
    """Forget a conversation and its items; whether it was there."""
    if get(db, account, conversation_id) is None:
        return False
    forget(db, conversation_id)
    return True


def items(db: sqlite3.Connection, account: str, conversation_id: str) -> list[tuple[str, msgspec.Raw]] | None:
    """All of them with their ids, unread, the first one first; None where there is no such conversation."""
    found = _items(db, account, conversation_id, "data")
    return None if found is None else [(item_id, msgspec.Raw(data)) for item_id, data in found]


def _items(
    db: sqlite3.Connection, account: str, conversation_id: str, wanted: str
) -> list[tuple[str, bytes | str]] | None:
    if get(db, account, conversation_id) is None:
        return None
    rows = f"SELECT id, {wanted} FROM conversation_items WHERE conversation = ? ORDER BY position"
    return db.execute(rows, (conversation_id,)).fetchall()


def use(db: sqlite3.Connection, account: str, conversation_id: str) -> list[Object] | None:
    """What a model reads of them, for whoever continues it: it counts as used now."""
    db.execute(
        "UPDATE conversations SET used = ? WHERE id = ? AND account = ?",
        (time.time(), conversation_id, account),
    )
    text = "CAST(data AS TEXT)"
    is_large = f"length(data) > {LARGE} AND json_valid({text})"
    spoken = f"CASE WHEN {is_large} THEN {SPOKEN.format(text)} ELSE data END"
    found = _items(db, account, conversation_id, spoken)
    return None if found is None else [_decode(data) for _, data in found]


def append(db: sqlite3.Connection, account: str, conversation_id: str, new: list[Object]) -> None:
    """Add items at the end, which counts as a use. To a conversation that is gone nothing is added; an item
    that is there stays."""
    if get(db, account, conversation_id) is None:
        return
    db.execute("UPDATE conversations SET used = ? WHERE id = ?", (time.time(), conversation_id))
    (last,) = db.execute(
        "SELECT coalesce(max(position), -1) FROM conversation_items WHERE conversation = ?",
        (conversation_id,),
    ).fetchone()
    db.executemany(
        "INSERT OR IGNORE INTO conversation_items VALUES (?, ?, ?, ?)",
        [(conversation_id, last + 1 + i, item["id"], encode(item)) for i, item in enumerate(new)],
    )
    db.executemany(
        "INSERT OR REPLACE INTO holders VALUES (?, ?, ?)",
        [(account, item["id"], conversation_id) for item in new],
    )


def remove(db: sqlite3.Connection, account: str, conversation_id: str, item_id: str) -> bool:
    """Forget an item; whether it was there."""
    if get(db, account, conversation_id) is None:
        return False
    removed = db.execute(
        "DELETE FROM conversation_items WHERE conversation = ? AND id = ?", (conversation_id, item_id)
    ).rowcount
    db.execute(
        "DELETE FROM holders WHERE account = ? AND item = ? AND holder = ?",
        (account, item_id, conversation_id),
    )
    return bool(removed)
