"""A file of SQLite: one connection a process, used by one thread, so that the loop never waits for a disk.

All processes of a gateway share it. SQLite's write-ahead log lets them read while one writes; whoever writes
waits for its turn, within a bound. A piece of work is one transaction: it is all there, or nothing of it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from gateway.refusals import STORE_UNAVAILABLE
from ipc.errors import CortexError

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[Concatenate[sqlite3.Connection, P], T]

TURN_SECONDS = 10.0  # that a writer waits for the others
AGAIN_SECONDS = 0.01  # between two tries of what SQLite does not wait for
RETRY_SECONDS = 1.0  # after which a client may try again whose turn did not come


class Kind(NamedTuple):
    """What a file holds.

    Attributes:
        name: as errors call it.
        file: how it is called in the folder of the service.
        version: of its format.
        schema: the statements that make its tables.
        advice: what to do without it; a sentence, or nothing.
    """

    name: str
    file: str
    version: int
    schema: str
    advice: str = ""


def default_path(kind: Kind) -> Path:
    """Where the file is without a word: in the service's own folder under systemd, else in the user's."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / kind.file
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "cortex" / kind.file


class Database:
    """The file at `path`, which is made, with its folder, when it is first needed.

    What root makes belongs to the folder's owner, which is the user of the service that uses it.

    Args:
        turn_seconds: that a writer waits for the others, and who reads after it, too; None: `TURN_SECONDS`.
    """

    def __init__(self, path: str | Path, kind: Kind, turn_seconds: float | None = None) -> None:
        self.path, self._kind = Path(path).expanduser(), kind
        self._turn_seconds = TURN_SECONDS if turn_seconds is None else turn_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # which file the connection has
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

    async def exists(self) -> bool:
        """Whether there is a file. One that is gone is let go of: SQLite would mix it up with the next.

        Raises:
            CortexError: STORE_UNAVAILABLE: we may not look.
        """
        return await self._in_thread(self._is_there)

    async def check(self) -> None:
        """See that the file can be used; CortexError, as for `read`, if not."""
        await self.read(lambda db: None)

    def close(self) -> None:
        """Let what is under way end, and close the file."""
        self._closed = True
        self._thread.shutdown()
        self._let_go()

    async def _run(self, begin: str, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._in_thread(lambda: self._transact(begin, work, *args, **kwargs))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise CortexError(STORE_UNAVAILABLE, "the gateway is being stopped")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _is_there(self) -> bool:
        """Whether there is a file; the connection is closed where it has another one, or one that is gone."""
        try:
            found = os.stat(self.path)
            which = found.st_dev, found.st_ino
        except (FileNotFoundError, NotADirectoryError):
            which = None
        except OSError as error:
            raise self._unavailable(error) from error
        if self._opened != which:
            self._let_go()
        return which is not None

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _transact(self, begin: str, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._is_there()
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
        self._make()
        made = os.stat(self.path)
        connection = sqlite3.connect(
            self.path, timeout=self._turn_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            _log_ahead(connection, self._turn_seconds)
            connection.execute("PRAGMA synchronous = NORMAL")
            if not _version(connection):  # who only reads need not wait for whoever writes
                connection.execute("BEGIN IMMEDIATE")
                if not _version(connection):  # nobody else made it meanwhile
                    for statement in self._kind.schema.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {self._kind.version}")
                connection.execute("COMMIT")
            if (version := _version(connection)) != self._kind.version:
                raise sqlite3.DatabaseError(
                    f"its format is {version}, and this version of cortex knows {self._kind.version}"
                )
        except BaseException:
            connection.close()
            raise
        self._connection, self._opened = connection, (made.st_dev, made.st_ino)
        return connection

    def _make(self) -> None:
        """Make the file, for nobody else to read, where it is missing."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            os.close(os.open(self.path, os.O_RDWR))  # says why not
            return
        if os.geteuid() == 0:
            owner = self.path.parent.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
        os.close(fd)

    def _unavailable(self, error: Exception) -> CortexError:
        """A file that others write to may be tried again; what else is wrong with it stays."""
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        advice = f". {self._kind.advice}" if self._kind.advice else ""
        text = f"{self._kind.name}, {self.path}, cannot be used: {why}{advice}"
        return CortexError(STORE_UNAVAILABLE, text, retry_after=RETRY_SECONDS if _is_busy(error) else None)


def _version(connection: sqlite3.Connection) -> int:
    """Of the file's format; 0: it has none yet."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version


def _log_ahead(connection: sqlite3.Connection, turn_seconds: float) -> None:
    """Have writes go to a log first. Of two that turn to that at once, SQLite has one fail at once."""
    end = time.monotonic() + turn_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > end:
                raise
        time.sleep(AGAIN_SECONDS)


def _is_busy(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more of it
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
