"""The file itself: one connection a process, used by one thread, so that the loop never waits for a disk.

All processes of a gateway share it. SQLite's write-ahead log lets them read while one writes; whoever writes
waits for its turn, within a bound. A piece of work is one transaction: it is all there, or nothing of it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from gateway.refusals import STORE_UNAVAILABLE
from gateway.store.retention import Limits
from ipc.errors import CortexError

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[Concatenate[sqlite3.Connection, P], T]

TURN_SECONDS = 10.0  # that a writer waits for the others
RETRY_SECONDS = 1.0  # after which a client may try again whose turn did not come
VERSION = 1
FILE = "responses.db"

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


def default_path() -> Path:
    """Where the file is without a word: in the service's own folder under systemd, else in the user's."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / FILE
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "cortex" / FILE


class Database:
    """The file at `path`, which is made, with its folder, when it is first needed.

    Args:
        limits: of what it holds.
    """

    def __init__(self, path: str | Path, limits: Limits) -> None:
        self.path, self.limits = Path(path).expanduser(), limits
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, which sees one state of the file.

        Raises:
            CortexError: STORE_UNAVAILABLE, and why; or what `work` raises.
        """
        return await self._run("BEGIN", work, *args, **kwargs)

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for `work` that changes something."""
        return await self._run("BEGIN IMMEDIATE", work, *args, **kwargs)

    async def check(self) -> None:
        """See that the file can be used; CortexError, as for `read`, if not."""
        await self.read(lambda db: None)

    def close(self) -> None:
        """Let what is under way end, and close the file."""
        self._closed = True
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _run(self, begin: str, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise CortexError(STORE_UNAVAILABLE, "the gateway is being stopped")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._transact(begin, work, *args, **kwargs))

    def _transact(self, begin: str, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            connection = self._connection or self._open()
            connection.execute(begin)
            try:
                result = work(connection, *args, **kwargs)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # conversations are nobody else's affair
        connection = sqlite3.connect(
            self.path, timeout=TURN_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise sqlite3.DatabaseError(
                    f"its format is {version}, and this version of cortex knows {VERSION}"
                )
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _unavailable(self, error: Exception) -> CortexError:
        """A file that others write to may be tried again; what else is wrong with it stays."""
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = (
            f"the store of responses, {self.path}, cannot be used: {why}. "
            "With store: false nothing has to be kept"
        )
        return CortexError(STORE_UNAVAILABLE, text, retry_after=RETRY_SECONDS if _is_busy(error) else None)


def _is_busy(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more of it
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
