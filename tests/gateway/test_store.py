"""The store: whole or nothing, for its owner only, within its limits, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.refusals import STORE_UNAVAILABLE
from gateway.store import conversations, database, owners, responses
from gateway.store.database import default_path
from gateway.store.response_store import RESPONSES, ResponseStore
from gateway.store.responses import Stored
from gateway.store.retention import Limits, make_room, size_of
from ipc.errors import CortexError

DAY = 86400.0
LIMITS = Limits(30 * DAY, 1 << 30)
ME, OTHER = "me", "other"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResponseStore]:
    database = ResponseStore(tmp_path / "new" / "responses.db", LIMITS)
    yield database
    database.close()


def read(store: ResponseStore, work: Any, *args: Any) -> Any:
    return asyncio.run(store.read(work, *args))


def write(store: ResponseStore, work: Any, *args: Any, **more: Any) -> Any:
    return asyncio.run(store.write(work, *args, **more))


def response(name: str, previous: str | None = None, size: int = 0, status: str = "completed") -> Stored:
    body = {"id": name, "status": status, "previous_response_id": previous, "output": [], "text": "x" * size}
    return Stored(body, [{"id": f"item_{name}", "type": "message"}])


def keep(store: ResponseStore, *stored: Stored, limits: Limits = LIMITS, **more: Any) -> None:
    for each in stored:
        write(store, responses.put, limits, ME, each, **more)


def ids(store: ResponseStore) -> list[str]:
    query = "SELECT id FROM responses UNION SELECT id FROM conversations ORDER BY 1"
    return [row[0] for row in read(store, lambda db: db.execute(query).fetchall())]


def failure(work: Any, *args: Any, **more: Any) -> CortexError:
    with pytest.raises(CortexError) as caught:
        work(*args, **more)
    assert caught.value.code == STORE_UNAVAILABLE
    return caught.value


def test_file_is_made_for_nobody_else(store: ResponseStore) -> None:
    keep(store, response("a"))
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_work_that_fails_leaves_nothing(store: ResponseStore) -> None:
    def work(db: sqlite3.Connection) -> None:
        responses.put(db, LIMITS, ME, response("a"))
        raise KeyError(db)

    with pytest.raises(KeyError):
        write(store, work)
    assert ids(store) == []
    keep(store, response("a"))
    failure(keep, store, response("a"))  # twice the same id
    assert read(store, responses.items, ME, ["item_a"]).get("item_a") == {"id": "item_a", "type": "message"}


def test_what_others_have_is_not_there(store: ResponseStore) -> None:
    keep(store, response("a"))
    write(store, conversations.create, ME, {"id": "c", "metadata": {}}, [{"id": "i"}])
    assert read(store, responses.get, OTHER, "a") is None
    assert read(store, responses.items, OTHER, ["item_a"]).get("item_a") is None
    assert read(store, responses.follow, OTHER, "a", -1) is None
    assert write(store, responses.chain, OTHER, "a").missing == "a"
    assert write(store, responses.cancel, OTHER, "a") is None
    assert not write(store, responses.delete, OTHER, "a")
    assert read(store, conversations.get, OTHER, "c") is None
    assert read(store, conversations.items, OTHER, "c") is None
    assert write(store, conversations.update, OTHER, "c", {"x": "y"}) is None
    assert not write(store, conversations.remove, OTHER, "c", "i")
    assert not write(store, conversations.delete, OTHER, "c")
    write(store, conversations.append, OTHER, "c", [{"id": "j"}])
    assert write(store, conversations.use, ME, "c") == [{"id": "i"}]
    assert read(store, responses.get, ME, "a") == response("a")


def test_item_is_found_as_long_as_something_holds_it(store: ResponseStore) -> None:
    item = {"id": "item_a", "type": "message"}
    write(store, conversations.create, ME, {"id": "c", "metadata": {}}, [])
    keep(store, response("a"), conversation="c")
    keep(store, response("b", status="failed"), conversation="c")
    assert write(store, conversations.use, ME, "c") == [item]
    write(store, responses.delete, ME, "a")
    assert read(store, responses.items, ME, ["item_a"]).get("item_a") == item
    write(store, conversations.delete, ME, "c")
    assert read(store, responses.items, ME, ["item_a"]).get("item_a") is None
    keep(store, response("a"))
    write(store, conversations.create, ME, {"id": "c", "metadata": {}}, [item])
    write(store, conversations.delete, ME, "c")
    assert read(store, responses.items, ME, ["item_a"]).get("item_a") == item


@pytest.mark.parametrize("count", [1, conversations.LARGE // 10])
def test_what_is_told_of_tokens_is_kept_and_not_read_to_a_model(store: ResponseStore, count: int) -> None:
    text = {"type": "output_text", "text": 'é "' + "x" * 10, "annotations": []}
    said = {"type": "message", "id": "said", "content": [text | {"logprobs": [{"token": "é\u2028"}] * count}]}
    call = {"type": "function_call", "id": "call", "arguments": '{"logprobs": 1.0}'}
    body = response("a").body | {"output": [said, call]}
    write(store, conversations.create, ME, {"id": "c", "metadata": {}}, [])
    keep(store, Stored(body, response("a").input), conversation="c")
    keep(store, response("b", "a"))
    assert read(store, responses.get, ME, "a").body == body
    assert [json.loads(bytes(each)) for _, each in read(store, conversations.items, ME, "c")][1:] == [
        said,
        call,
    ]
    is_large = count > 1
    spoken = said | {"content": [text | {"logprobs": []}]} if is_large else said
    chain = write(store, responses.chain, ME, "b")
    assert [each["id"] for each in chain.items] == ["item_a", "said", "call", "item_b"]
    assert chain.items[1:3] == write(store, conversations.use, ME, "c")[1:] == [spoken, call]
    write(store, conversations.delete, ME, "c")
    assert read(store, responses.items, ME, ["said", "call"]) == {"said": spoken, "call": call}


def test_what_nobody_continued_goes_with_age(store: ResponseStore) -> None:
    keep(store, response("a"), response("b", "a"), response("old"), response("c"))
    write(store, conversations.create, ME, {"id": "conv", "metadata": {}}, [{"id": "i"}])

    def age(db: sqlite3.Connection) -> None:
        past = time.time() - 31 * DAY
        for table in ("responses", "conversations"):
            db.execute(f"UPDATE {table} SET used = ?, created = ?", (past, past))

    write(store, age)
    assert write(store, responses.chain, ME, "b").missing is None  # they are continued, and so are used now
    keep(store, response("new"))
    assert ids(store) == ["a", "b", "new"]
    assert read(store, responses.items, ME, ["item_old"]).get("item_old") is None
    assert read(store, responses.items, ME, ["i"]).get("i") is None


def test_full_store_forgets_what_was_used_longest_ago_and_never_the_middle_of_a_chain(
    store: ResponseStore,
) -> None:
    size = 40_000
    limits = Limits(30 * DAY, 20 * size)
    keep(store, response("a", size=size), response("b", "a", size), response("c", "b", size), limits=limits)
    for i in range(8):
        keep(store, response(f"x{i}", size=size), limits=limits)
    write(store, responses.chain, ME, "c")
    for i in range(100):
        keep(store, response(f"y{i:02}", size=size), limits=limits)
        there = set(ids(store))
        assert f"y{i:02}" in there
        assert there & {"a", "b", "c"} in ({"a", "b", "c"}, {"a", "b"}, {"a"}, set())
        if "x7" in there:
            assert "c" in there
        assert read(store, size_of) <= limits.max_size
    assert not there & {"a", "b", "c"}
    assert store.path.stat().st_size <= 2 * limits.max_size


def test_one_that_is_larger_than_all_is_refused_and_takes_nothing_away(store: ResponseStore) -> None:
    keep(store, response("a"))
    error = failure(keep, store, response("b", size=2_000_000), limits=Limits(DAY, 1_000_000))
    assert "store.max_size" in error.message
    assert ids(store) == ["a"]


def test_what_is_worked_on_stays(store: ResponseStore) -> None:
    limits = Limits(30 * DAY, 400_000)
    keep(store, response("run", size=40_000, status="in_progress"), owner=owners.ourselves())
    for i in range(20):
        keep(store, response(f"x{i}", size=40_000), limits=limits)
    assert "run" in ids(store)


def test_conversations_take_their_turn(store: ResponseStore) -> None:
    limits = Limits(30 * DAY, 400_000)

    def make(db: sqlite3.Connection, name: str) -> None:
        conversations.create(db, ME, {"id": name, "metadata": {}}, [{"id": f"i{name}", "text": "x" * 40_000}])
        make_room(db, limits, name)

    for i in range(30):
        write(store, make, f"c{i:02}")
    left = ids(store)
    assert left[-1] == "c29"
    assert left == [f"c{i:02}" for i in range(30 - len(left), 30)]
    assert read(store, responses.items, ME, ["ic00"]).get("ic00") is None


def test_conversation_that_is_added_to_is_in_use(store: ResponseStore) -> None:
    for name in ("old", "added"):
        write(store, conversations.create, ME, {"id": name, "metadata": {}}, [])
    write(store, lambda db: db.execute("UPDATE conversations SET used = ?", (time.time() - 31 * DAY,)))
    write(store, conversations.append, ME, "added", [{"id": "i"}])
    write(store, make_room, LIMITS, "")
    assert ids(store) == ["added"]


def test_full_disk_is_told_and_leaves_nothing(store: ResponseStore) -> None:
    keep(store, response("a"))
    pages = read(store, lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    read(store, lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    error = failure(keep, store, response("b", size=100_000))
    assert "full" in error.message
    assert str(store.path) in error.message
    assert ids(store) == ["a"]
    keep(store, response("c"))
    assert ids(store) == ["a", "c"]


def test_store_of_a_gateway_that_stops_is_told(store: ResponseStore) -> None:
    keep(store, response("a"))
    store.close()
    assert "stopped" in failure(keep, store, response("b")).message


def test_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is no database, and never was one " * 100)
    (tmp_path / "folder").mkdir()
    for path in ("file/below", "file", "folder"):
        database = ResponseStore(tmp_path / path, LIMITS)
        error = failure(asyncio.run, database.check())
        assert str(tmp_path / path) in error.message
        assert "store: false" in error.message
        database.close()


def test_file_of_another_version_is_left_alone(store: ResponseStore) -> None:
    keep(store, response("a"))
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    later = ResponseStore(store.path, LIMITS)
    assert "99" in failure(asyncio.run, later.check()).message
    later.close()


@pytest.mark.parametrize("time", range(20))
def test_two_at_once_find_one_file(tmp_path: Path, time: int) -> None:
    """Both make it, and write to it. In one of twenty times they do so in the same moment."""
    stores = [ResponseStore(tmp_path / "responses.db", LIMITS) for _ in range(2)]

    async def run() -> None:
        work = [stores[i % 2].write(responses.put, LIMITS, ME, response(f"r{i:03}")) for i in range(100)]
        await asyncio.gather(*work)

    asyncio.run(run())
    assert [len(ids(store)) for store in stores] == [100, 100]
    for store in stores:
        store.close()


def test_owner_that_is_gone_is_known(store: ResponseStore) -> None:
    code = "from gateway.store import owners; print(owners.ourselves(), flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    owner = process.stdout.readline().strip()
    assert owners.lives(owner)
    assert owners.lives(owners.ourselves())
    assert not owners.lives(f"{os.getpid()}:1")  # somebody before us, with the same number
    keep(store, response("a", status="in_progress"), owner=owner)
    write(store, responses.bury)
    assert read(store, responses.get, ME, "a").body["status"] == "in_progress"
    assert not read(store, responses.follow, ME, "a", -1).orphaned
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and its parent has not looked yet
    assert not owners.lives(owner)
    assert read(store, responses.follow, ME, "a", -1).orphaned
    keep(store, response("b"))  # whoever writes looks after them, so that they do not stay for ever
    ended = read(store, responses.get, ME, "a").body
    assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
    assert read(store, lambda db: db.execute("SELECT owner FROM responses").fetchall()) == [(None,), (None,)]
    process.communicate()
    assert not owners.lives(owner)


def test_end_from_outside_holds_against_the_owner(store: ResponseStore) -> None:
    keep(store, response("a", status="in_progress"), owner=owners.ourselves())
    assert write(store, responses.advance, response("a", status="in_progress").body, [(0, b"e0")])
    assert write(store, responses.cancel, ME, "a").status == "cancelled"
    assert read(store, responses.get, ME, "a").body["status"] == "cancelled"
    assert not write(store, responses.advance, response("a").body, [(1, b"e1")])
    assert not write(store, responses.finish, LIMITS, ME, response("a"), [])
    assert read(store, responses.get, ME, "a").body["status"] == "cancelled"
    numbers = [number for number, _ in read(store, responses.follow, ME, "a", -1).events]
    assert numbers == [0, 1]  # the second one says that it was cancelled


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/cortex:/var/lib/other"}, "/var/lib/cortex/responses.db"),
        ({"XDG_STATE_HOME": "/state"}, "/state/cortex/responses.db"),
        ({"HOME": "/home/me"}, "/home/me/.local/state/cortex/responses.db"),
    ],
)
def test_place_without_a_word(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], path: str
) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_path(RESPONSES) == Path(path)


def test_a_file_that_another_holds_may_be_tried_again(
    store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TURN_SECONDS", 0.0)
    read(store, lambda db: None)  # there is a file
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CortexError, match="locked") as caught:
            write(store, lambda db: None)
        other.execute("ROLLBACK")
    assert caught.value.code == STORE_UNAVAILABLE
    assert caught.value.retry_after


def test_what_is_told_of_a_response_needs_no_reading_of_the_rest(store: ResponseStore) -> None:
    stored = response("a")
    keep(store, stored, response("b", status="failed"))
    told = read(store, responses.written, ME, "a")
    assert (told.status, msgspec.json.decode(told.body)) == ("completed", stored.body)
    assert read(store, responses.given, ME, "a") == ("completed", stored.input)
    assert read(store, responses.get, ME, "a") == stored
    assert (
        read(store, responses.get, ME, "b").status == read(store, responses.given, ME, "b").status == "failed"
    )
    for look in (responses.written, responses.given):
        assert read(store, look, OTHER, "a") is read(store, look, ME, "c") is None
