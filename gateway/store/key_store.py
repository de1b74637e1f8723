"""The file of API keys: who has one, what it allows, and what was used with it.

A key is made and revoked, and nothing else: what it allows stays as it was made.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from gateway.store.database import Database, Kind

MAX_INT = (1 << 63) - 1  # that a message to a neuron has room for
Count = Annotated[int, Meta(ge=0)]

KEYS = Kind(
    name="the store of keys",
    file="keys.db",
    version=1,
    schema="""
CREATE TABLE keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: limits are counted by it
    id TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL,
    terms BLOB NOT NULL     -- as JSON
);
CREATE TABLE usage (
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    day TEXT NOT NULL,      -- of UTC, as in 2026-11-27
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (key, model, day)
) WITHOUT ROWID;
""",
)


class Terms(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key allows. Limits: None is without end.

    Attributes:
        models: patterns with stars, of models' own names; empty: all.
        endpoints: the same of paths, such as /v1/chat/*; empty: all.
        admin: it may change the fleet, and sees what others use.
        priority: of its requests at least; a smaller one is sooner.
    """

    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    admin: bool = False
    requests_per_minute: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    priority: int = 0

    @property
    def limits_requests(self) -> bool:
        return self.requests_per_minute is not None or self.requests_per_day is not None

    @property
    def limits_tokens(self) -> bool:
        return self.tokens_per_minute is not None or self.tokens_per_day is not None


class Key(NamedTuple):
    """A key, as it is kept. Times are Unix times."""

    number: int
    id: str
    digest: bytes
    name: str
    created: float
    expires: float | None
    revoked: float | None
    terms: Terms


class UsageRow(NamedTuple):
    """What was used with a key, of a model, on a day."""

    key: str
    model: str
    day: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class KeyStore(Database):
    """The file at `path`."""

    def __init__(self, path: Path, turn_seconds: float | None = None) -> None:
        super().__init__(path, KEYS, turn_seconds)


def add(
    db: sqlite3.Connection, key_id: str, digest: bytes, name: str, expires: float | None, terms: Terms
) -> None:
    """Keep a new key; `expires` is Unix time, None: never."""
    db.execute(
        "INSERT INTO keys (id, digest, name, created, expires, terms) VALUES (?, ?, ?, ?, ?, ?)",
        (key_id, digest, name, time.time(), expires, msgspec.json.encode(terms)),
    )


def every(db: sqlite3.Connection) -> list[Key]:
    """All keys, the revoked ones too, in the order in which they were made."""
    rows = db.execute(
        "SELECT number, id, digest, name, created, expires, revoked, terms FROM keys ORDER BY number"
    )
    try:
        return [Key(*row[:-1], msgspec.json.decode(row[-1], type=Terms)) for row in rows]
    except (msgspec.DecodeError, TypeError) as error:
        raise sqlite3.DatabaseError(f"what a key allows cannot be read: {error}") from error


def edition(db: sqlite3.Connection) -> tuple[int, int, float, float]:
    """How many keys were made and revoked, and what differs for others: another file may be there."""
    query = "SELECT count(*), count(revoked), total(created), total(revoked) FROM keys"
    return db.execute(query).fetchone()


def named(db: sqlite3.Connection, name: str) -> list[Key]:
    """The keys of that id, or else of that name, which are not revoked."""
    valid = [key for key in every(db) if key.revoked is None]
    return [key for key in valid if key.id == name] or [key for key in valid if key.name == name]


def revoke(db: sqlite3.Connection, key_id: str) -> None:
    """Let nobody use a key any more, from now on."""
    db.execute("UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (time.time(), key_id))


def use(db: sqlite3.Connection, rows: Iterable[UsageRow]) -> None:
    """Add what was used."""
    db.executemany(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
        "cached_tokens = cached_tokens + excluded.cached_tokens, "
        "completion_tokens = completion_tokens + excluded.completion_tokens",
        rows,
    )


def usage(db: sqlite3.Connection, since: str) -> list[UsageRow]:
    """What was used by key and model, all days from `since` together; the day is the last one."""
    rows = db.execute(
        "SELECT key, model, max(day), sum(requests), sum(prompt_tokens), sum(cached_tokens), "
        "sum(completion_tokens) FROM usage WHERE day >= ? GROUP BY key, model ORDER BY key, model",
        (since,),
    )
    return [UsageRow(*row) for row in rows]
