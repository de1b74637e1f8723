"""A file that is read again: when, and what counts while it cannot be."""

from __future__ import annotations

import os

import pytest

from ipc.settings import ConfigError
from ipc.watched_file import WatchedFile


def number(path):
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(path, "", str(error)) from error


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "number"
    path.write_text("1")
    return WatchedFile(path, number, 1)


def test_a_change_is_read_once_it_stands_still(file):
    assert not file.look()
    file.path.write_text("22")
    assert not file.look()  # it may be half of it
    file.path.write_text("222")
    assert not file.look()
    assert file.look()
    assert file.value == 222
    assert not file.look()


def test_a_file_that_says_the_same_again_changes_nothing(file):
    file.path.write_text("01")
    assert [file.look(), file.look()] == [False, False]
    assert (file.value, file.error) == (1, None)


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("one"), lambda path: path.unlink()])
def test_what_it_said_last_stays_while_it_cannot_be_read(file, spoil, caplog):
    spoil(file.path)
    for _ in range(4):
        assert not file.look()
    assert file.value == 1
    assert str(file.path) in str(file.error)
    told = [record for record in caplog.records if record.name == "ipc.watched_file"]
    assert len(told) == 1  # it is said once, not each second
    file.path.write_text("3")
    assert [file.look(), file.look()] == [False, True]
    assert (file.value, file.error) == (3, None)


def test_another_file_in_its_place_is_seen_though_it_has_the_same_size_and_time(file):
    before = os.stat(file.path)
    other = file.path.with_suffix(".new")
    other.write_text("2")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file.path)
    assert [file.look(), file.look()] == [False, True]


def test_whoever_asks_has_it_read_at_once(file):
    file.path.write_text("5")
    assert file.read()
    assert file.value == 5
    assert not file.look()
