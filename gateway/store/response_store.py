"""The file of responses and conversations."""

from __future__ import annotations

from pathlib import Path

from gateway.store.database import Database, Kind
from gateway.store.retention import Limits

_SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    status TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,     -- when it was last continued
    previous TEXT,          -- the response that it continues
    owner TEXT,             -- the process that works on it
    body BLOB NOT NULL,     -- the object, as JSON
    input BLOB NOT NULL     -- the items that came with the request, as a JSON list
);
CREATE INDEX responses_used ON responses (used, created DESC);
CREATE INDEX responses_owner ON responses (owner) WHERE owner IS NOT NULL;
CREATE TABLE events (       -- of responses that may be read again as streams
    response TEXT NOT NULL,
    number INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (response, number)
) WITHOUT ROWID;
CREATE TABLE holders (      -- where an item stands
    account TEXT NOT NULL,
    item TEXT NOT NULL,
    holder TEXT NOT NULL,   -- a response or a conversation
    PRIMARY KEY (account, item, holder)
) WITHOUT ROWID;
CREATE INDEX holders_holder ON holders (holder);
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    body BLOB NOT NULL      -- the object, as JSON
);
CREATE INDEX conversations_used ON conversations (used, created DESC);
CREATE TABLE conversation_items (
    conversation TEXT NOT NULL,
    position INTEGER NOT NULL,
    id TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (conversation, position),
    UNIQUE (conversation, id)
) WITHOUT ROWID;
"""

RESPONSES = Kind(
    name="the store of responses",
    file="responses.db",
    version=1,
    schema=_SCHEMA,
    advice="With store: false nothing has to be kept",
)


class ResponseStore(Database):
    """The file at `path`, and the limits of what it holds."""

    def __init__(self, path: str | Path, limits: Limits) -> None:
        super().__init__(path, RESPONSES)
        self.limits = limits
