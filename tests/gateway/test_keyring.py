"""The keys that one process knows, whatever happens to the file that they are in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.access import api_key, keyring
from gateway.access.keyring import Keyring, has_keys
from gateway.access.principal import LEFTOVERS
from gateway.refusals import INVALID_KEY, STORE_UNAVAILABLE
from gateway.store import key_store
from gateway.store.key_store import KeyStore, Terms
from ipc.errors import CortexError
from ipc.messages.answers import Usage


def make_key(path: Path, **terms: Any) -> str:
    """As another process does it, which is gone then."""
    key, store = api_key.make(), KeyStore(path)
    asyncio.run(store.write(key_store.add, key.id, key.digest, "somebody", None, Terms(**terms)))
    store.close()
    return key.text


def beside(ring: Keyring, work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await ring.start()
        try:
            await work()
        finally:
            await ring.stop()

    asyncio.run(run())


async def holds(ring: Keyring, key: str) -> bool:
    try:
        await ring.who([key], lambda: "")
    except CortexError as error:
        if error.code != INVALID_KEY:
            raise
        return False
    return True


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.01)


async def until(found: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await found():  # noqa: ASYNC110 - nothing says when a file has been read
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_keys_of_a_file_that_took_anothers_place_count_and_its_own_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path, other = tmp_path / "keys.db", tmp_path / "other.db"
    old, new = make_key(path), make_key(other)
    ring = Keyring(path, anonymous=False)

    async def work() -> None:
        assert await holds(ring, old)
        if how == "deleted":
            path.unlink()

            async def gone() -> bool:
                return not await holds(ring, old)

            await until(gone)
        os.replace(other, path)

        async def changed() -> bool:
            return await holds(ring, new) and not await holds(ring, old)

        await until(changed)

    beside(ring, work)
    assert [record.getMessage().partition(", is")[2] for record in caplog.records] == (
        [" gone, and all keys with it"] if how == "deleted" else []
    )


def test_keys_are_read_while_somebody_writes_and_takes_no_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.db"
    key, ring = make_key(path), Keyring(path, anonymous=False)

    async def work() -> None:
        assert await holds(ring, key)
        assert not await holds(ring, "sk-cortex-another")

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        beside(ring, work)
    assert not caplog.records


def test_where_no_key_was_ever_read_none_is_said_to_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(b"no database" * 1000)
    ring = Keyring(path, anonymous=False)

    async def work() -> None:
        with pytest.raises(CortexError, match="file is not a database"):
            await ring.who([api_key.make().text], lambda: "")

    beside(ring, work)
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == ["no key is known"]


@pytest.mark.parametrize("jump", [86400.0, -86400.0, 2.0])
def test_a_clock_that_jumps_is_told_once_and_one_that_is_put_right_a_little_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, jump: float
) -> None:
    ring, right = Keyring(tmp_path / "keys.db", anonymous=True), time.time

    async def work() -> None:
        monkeypatch.setattr(time, "time", lambda: right() + jump)
        begun = ring._looks

        async def looked() -> bool:
            return ring._looks > begun + 3

        await until(looked)

    beside(ring, work)
    monkeypatch.undo()
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == ([f"the clock jumped by {jump:+.0f} s"] if abs(jump) > 2 else [])


def test_who_has_no_key_gets_what_those_with_one_leave(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    ring = Keyring(path, anonymous=True)

    async def work() -> None:
        nobody = await ring.who([], lambda: "an address")
        assert [nobody.weigh(asked) for asked in (-7, 0, 7)] == [-7, 0, 7]  # there is nobody else
        key = await asyncio.to_thread(make_key, path, priority=5)
        somebody = await ring.who([key], lambda: "an address")
        assert [somebody.weigh(asked) for asked in (-7, 5, 9)] == [5, 5, 9]
        nobody = await ring.who([], lambda: "an address")
        assert [nobody.weigh(asked) for asked in (-7, 0, 700)] == [LEFTOVERS, LEFTOVERS, 700]

    beside(ring, work)


def test_a_store_made_anew_while_a_gateway_runs_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    old = make_key(path)
    ring = Keyring(path, anonymous=False)

    async def work() -> None:
        assert await holds(ring, old)
        path.unlink()
        new = await asyncio.to_thread(make_key, path)

        async def changed() -> bool:
            return await holds(ring, new) and not await holds(ring, old)

        await until(changed)
        found = sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()
        assert found == ("ok",)

    beside(ring, work)


def test_nobody_is_an_administrator_on_loopback_while_nobody_knows_whose_key_is_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(b"no database " * 100)
    ring = Keyring(path, anonymous=True, local=True)

    async def work() -> None:
        assert not (await ring.who([], lambda: "someone")).admin
        path.unlink()

        async def alone() -> bool:
            return (await ring.who([], lambda: "someone")).admin

        await until(alone)

    beside(ring, work)


def test_a_look_that_fails_in_any_way_is_not_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.db"
    key = make_key(path)
    ring = Keyring(path, anonymous=False)

    async def work() -> None:
        failed = asyncio.Event()

        async def fail(*args: object) -> bool:
            failed.set()
            raise RuntimeError

        with monkeypatch.context() as patch:
            patch.setattr(KeyStore, "exists", fail)
            async with asyncio.timeout(20):
                await failed.wait()
        with sqlite3.connect(path) as db:
            db.execute("UPDATE keys SET revoked = 1")

        async def revoked() -> bool:
            return not await holds(ring, key)

        await until(revoked)

    beside(ring, work)


@pytest.mark.parametrize("what", ["locked", "full"])
def test_a_store_that_cannot_be_written_is_one_line_and_what_was_used_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    path = tmp_path / "keys.db"
    key = make_key(path)
    monkeypatch.setattr(keyring, "TURN_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    ring = Keyring(path, anonymous=False)

    def fail(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def work() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            with monkeypatch.context() as patch:
                if what == "locked":
                    other.execute("BEGIN IMMEDIATE")
                else:
                    patch.setattr(key_store, "use", fail)
                ring.note((await ring.who([key], lambda: "")).account, "m", Usage(prompt_tokens=3))
                begun = ring._looks

                async def looked() -> bool:
                    return ring._looks > begun + 5 and "written later" in caplog.text

                await until(looked)
                assert await holds(ring, key)
            if what == "locked":
                other.execute("ROLLBACK")

            async def written() -> bool:
                return "is written again" in caplog.text

            await until(written)
        [row] = await ring.used("2000-01-01")
        assert (row.requests, row.prompt_tokens) == (1, 3)

    beside(ring, work)
    assert caplog.text.count("cannot be used") == 1


def test_what_was_used_is_written_before_the_end_though_others_write_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.db"
    make_key(path)
    monkeypatch.setattr(keyring, "TURN_SECONDS", 0.01)
    ring = Keyring(path, anonymous=False)

    async def run() -> None:
        await ring.start()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ring.note("k", "m", Usage(prompt_tokens=3))
            asyncio.get_running_loop().call_later(0.3, other.execute, "ROLLBACK")
            await ring.stop()

    asyncio.run(run())
    store = KeyStore(path)
    [row] = asyncio.run(store.read(key_store.usage, "2000-01-01"))
    store.close()
    assert row.prompt_tokens == 3


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.db"

    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")  # root, which tests may be, never meets it

    ring = Keyring(path, anonymous=False)
    monkeypatch.setattr(os, "stat", refused)

    async def work() -> None:
        with pytest.raises(CortexError, match=r"keys\.db, cannot be used: Permission denied") as caught:
            await ring.who(["sk-cortex-any"], lambda: "")
        assert caught.value.code == STORE_UNAVAILABLE
        for look in (ring.every(), ring.used("2026-11-27")):  # for the page
            with pytest.raises(CortexError, match="Permission denied"):
                await look

    beside(ring, work)
    with pytest.raises(CortexError, match=r"keys\.db, cannot be used: Permission denied"):
        has_keys(path)


def test_terms_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    key = make_key(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE keys SET terms = '{'")
    ring = Keyring(path, anonymous=False)

    async def work() -> None:
        with pytest.raises(CortexError, match="what a key allows cannot be read") as caught:
            await ring.who([key], lambda: "")
        assert caught.value.code == STORE_UNAVAILABLE

    beside(ring, work)
