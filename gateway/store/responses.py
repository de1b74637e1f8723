"""Stored responses. What an account does not have is not there for it, whoever else has it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.store import owners
from gateway.store.conversations import LARGE, SPOKEN, append, encode
from gateway.store.retention import Limits, forget, make_room

ACTIVE = ("queued", "in_progress")
CONTINUABLE = ("completed", "incomplete")

# Said of a response whose process ended before it did.
ORPHANED = {
    "code": "server_error",
    "message": "the gateway process that worked on it ended before it did; ask again",
}

_decode = msgspec.json.decode
_separate = msgspec.json.Decoder(list[msgspec.Raw]).decode
Object = dict[str, Any]


class Stored(NamedTuple):
    """A response, and the items that came with its request."""

    body: Object
    input: list[Object]

    @property
    def status(self) -> str:
        return self.body["status"]


class Written(NamedTuple):
    """A response as it was written. To read a large one keeps the interpreter for hundredths of a second."""

    status: str
    body: bytes


class Given(NamedTuple):
    """The items that came with the request for a response, and how that is."""

    status: str
    items: list[Object]


class Chain(NamedTuple):
    """Responses, each of which continues the one before; `missing` is the first that is no longer there.

    Attributes:
        items: what a model reads of all of them.
        status: of the last one.
    """

    items: list[Object]
    status: str
    missing: str | None


class _Link(NamedTuple):
    id: str
    status: str
    previous: str | None
    items: list[Object]  # what a model reads of it


_SPOKEN_OUTPUT = (
    f"SELECT json_group_array({SPOKEN.format('value')}) FROM json_each(CAST(body AS TEXT), '$.output')"
)


def put(
    db: sqlite3.Connection,
    limits: Limits,
    account: str,
    stored: Stored,
    *,
    owner: str | None = None,
    conversation: str | None = None,
    events: Sequence[tuple[int, bytes]] = (),
) -> None:
    """Keep a new response; where it belongs to a conversation, its items become the conversation's.

    Args:
        owner: the process that works on it from now on.
        events: its first ones, where it may be read again as a stream.
    """
    body, now = stored.body, time.time()
    db.execute(
        "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            body["id"],
            account,
            body["status"],
            now,
            now,
            body["previous_response_id"],
            owner,
            encode(body),
            encode(stored.input),
        ),
    )
    _record(db, body["id"], events)
    _hold(db, account, body["id"], [*stored.input, *body["output"]])
    _continue(db, account, conversation, stored)
    bury(db)  # nobody may ever ask for them again
    make_room(db, limits, keep=body["id"])


def get(db: sqlite3.Connection, account: str, response_id: str) -> Stored | None:
    """The response of that account, as it was kept; None where there is none."""
    row = db.execute(
        "SELECT body, input FROM responses WHERE id = ? AND account = ?", (response_id, account)
    ).fetchone()
    return None if row is None else Stored(_decode(row[0]), _items(row[1]))


def written(db: sqlite3.Connection, account: str, response_id: str) -> Written | None:
    """The same, unread."""
    row = db.execute(
        "SELECT status, body FROM responses WHERE id = ? AND account = ?", (response_id, account)
    ).fetchone()
    return None if row is None else Written(*row)


def given(db: sqlite3.Connection, account: str, response_id: str) -> Given | None:
    """What came with its request."""
    row = db.execute(
        "SELECT status, input FROM responses WHERE id = ? AND account = ?", (response_id, account)
    ).fetchone()
    return None if row is None else Given(row[0], _items(row[1]))


def _items(data: bytes | str) -> list[Object]:
    """A list of items, each read by itself: between two of them other threads have their turn."""
    return [_decode(each) for each in _separate(data)]


def delete(db: sqlite3.Connection, account: str, response_id: str) -> bool:
    """Forget a response; whether it was there."""
    if written(db, account, response_id) is None:
        return False
    forget(db, response_id)
    return True


def chain(db: sqlite3.Connection, account: str, response_id: str) -> Chain:
    """A response and all that it continues, the first one first. They count as used now."""
    links: list[_Link] = []
    next_id: str | None = response_id
    while next_id is not None:
        link = _link(db, account, next_id)
        if link is None:
            return Chain([], "", next_id)
        links.append(link)
        next_id = link.previous
    now = time.time()
    db.executemany("UPDATE responses SET used = ? WHERE id = ?", [(now, each.id) for each in links])
    return Chain([item for link in reversed(links) for item in link.items], links[0].status, None)


def _link(db: sqlite3.Connection, account: str, response_id: str) -> _Link | None:
    row = db.execute(
        "SELECT id, status, previous, input, "
        f"CASE WHEN length(body) > {LARGE} THEN ({_SPOKEN_OUTPUT}) END, "
        f"CASE WHEN length(body) <= {LARGE} THEN body END FROM responses WHERE id = ? AND account = ?",
        (response_id, account),
    ).fetchone()
    if row is None:
        return None
    *known, given, spoken, body = row
    said = _items(spoken) if body is None else _decode(body)["output"]
    return _Link(*known, [*_items(given), *said])


def items(db: sqlite3.Connection, account: str, item_ids: Iterable[str]) -> dict[str, Object]:
    """Those of the items that are there, by their ids, wherever they stand."""
    found = ((item_id, _item(db, account, item_id)) for item_id in item_ids)
    return {item_id: each for item_id, each in found if each is not None}


def _item(db: sqlite3.Connection, account: str, item_id: str) -> Object | None:
    """The item with that id, wherever it stands."""
    holders = "SELECT holder FROM holders WHERE account = ? AND item = ?"
    row = db.execute(
        f"SELECT data FROM conversation_items WHERE id = ? AND conversation IN ({holders})",
        (item_id, account, item_id),
    ).fetchone()
    if row is not None:
        return _decode(row[0])
    row = db.execute(f"SELECT id FROM responses WHERE id IN ({holders})", (account, item_id)).fetchone()
    link = _link(db, account, row[0]) if row is not None else None
    return next((each for each in link.items if each["id"] == item_id), None) if link is not None else None


# --- responses that somebody works on -------------------------------------------------------------------


def advance(db: sqlite3.Connection, body: Object, events: list[tuple[int, bytes]]) -> bool:
    """Note how far this process has come with a response, and the events since the last time.

    Returns:
        False when it is no longer worked on: it was cancelled, or deleted.
    """
    owner = owners.ourselves()
    changed = db.execute(
        "UPDATE responses SET status = ?, body = ? WHERE id = ? AND owner = ?",
        (body["status"], encode(body), body["id"], owner),
    ).rowcount
    if changed:
        _record(db, body["id"], events)
    return bool(changed)


def finish(
    db: sqlite3.Connection,
    limits: Limits,
    account: str,
    stored: Stored,
    events: list[tuple[int, bytes]],
    conversation: str | None = None,
) -> bool:
    """The same at its end: nobody works on it any more."""
    body = stored.body
    if not advance(db, body, events):
        return False
    db.execute("UPDATE responses SET owner = NULL WHERE id = ?", (body["id"],))
    _hold(db, account, body["id"], body["output"])
    _continue(db, account, conversation, stored)
    bury(db)  # nobody may ever ask for them again
    make_room(db, limits, keep=body["id"])
    return True


def cancel(db: sqlite3.Connection, account: str, response_id: str) -> Written | None:
    """End a response that is worked on, wherever; what has ended stays as it is."""
    found = written(db, account, response_id)
    if found is None or found.status not in ACTIVE:
        return found
    body = _decode(found.body)
    body["status"] = "cancelled"
    _end(db, body)
    return written(db, account, response_id)


def bury(db: sqlite3.Connection) -> None:
    """Note that those have failed whose process ended before they did."""
    rows = db.execute("SELECT id, owner FROM responses WHERE owner IS NOT NULL").fetchall()
    for response_id, owner in rows:
        if not owners.lives(owner):
            fail(db, response_id, ORPHANED)


def fail(db: sqlite3.Connection, response_id: str, error: Object) -> None:
    """End a response as far as it was written, with that error, where somebody is said to work on it."""
    row = db.execute(
        "SELECT body FROM responses WHERE id = ? AND owner IS NOT NULL", (response_id,)
    ).fetchone()
    if row is not None:
        body = _decode(row[0])
        body.update(status="failed", error=error)
        _end(db, body)


def _end(db: sqlite3.Connection, body: Object) -> None:
    """Write an end that whoever worked on it does not know of."""
    response_id, status = body["id"], body["status"]
    db.execute(
        "UPDATE responses SET status = ?, owner = NULL, body = ? WHERE id = ?",
        (status, encode(body), response_id),
    )
    (last,) = db.execute("SELECT max(number) FROM events WHERE response = ?", (response_id,)).fetchone()
    if last is not None:
        kind = f"response.{status}"
        data = encode({"type": kind, "sequence_number": last + 1, "response": body})
        _record(db, response_id, [(last + 1, f"event: {kind}\ndata: ".encode() + data)])


class News(NamedTuple):
    """The events of a response after a certain one, and whether more may come."""

    events: list[tuple[int, bytes]]
    over: bool
    orphaned: bool  # nobody works on it, though it has not ended


def follow(db: sqlite3.Connection, account: str, response_id: str, after: int) -> News | None:
    """What is new of a response; None where there is none, or none with events."""
    row = db.execute(
        "SELECT status, owner FROM responses WHERE id = ? AND account = ?", (response_id, account)
    ).fetchone()
    if row is None:
        return None
    events = db.execute(
        "SELECT number, data FROM events WHERE response = ? AND number > ? ORDER BY number LIMIT 1000",
        (response_id, after),
    ).fetchall()
    status, owner = row
    active = status in ACTIVE
    return News(
        events, not active and len(events) < 1000, active and (owner is None or not owners.lives(owner))
    )


def has_events(db: sqlite3.Connection, response_id: str) -> bool:
    """Whether it can be read again as a stream."""
    return (
        db.execute("SELECT 1 FROM events WHERE response = ? LIMIT 1", (response_id,)).fetchone() is not None
    )


def _continue(db: sqlite3.Connection, account: str, conversation: str | None, stored: Stored) -> None:
    """Add what was asked and answered to a conversation, where there was an answer."""
    if conversation is not None and stored.body["status"] in CONTINUABLE:
        append(db, account, conversation, [*stored.input, *stored.body["output"]])


def _record(db: sqlite3.Connection, response_id: str, events: Sequence[tuple[int, bytes]]) -> None:
    db.executemany(
        "INSERT INTO events VALUES (?, ?, ?)", [(response_id, number, data) for number, data in events]
    )


def _hold(db: sqlite3.Connection, account: str, holder: str, items: list[Object]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO holders VALUES (?, ?, ?)", [(account, each["id"], holder) for each in items]
    )
