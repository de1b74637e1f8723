"""What a killed process leaves goes when the next one starts, and what is in use stays."""

import subprocess
import sys
import tempfile

import pytest

from ipc import held_folder

OWNER = """
import os, sys, time
from ipc import held_folder
held_folder.make("tried").joinpath("file").touch()
if os.fork() == 0:
    sys.stdin.read()  # a fork lives on
    os._exit(0)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(held_folder, "_held", [])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_goes_once_its_forks_are_gone(place):
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.wait(150) == -9
    [left] = place.iterdir()
    first = held_folder.make("tried")
    assert {*place.iterdir()} == {left, first}
    owner.stdin.close()
    owner.stdout.read()  # to the fork's end
    second = held_folder.make("tried")
    assert {*place.iterdir()} == {first, second}


def test_nothing_is_removed_that_a_link_leads_to_or_that_is_of_another_kind(place):
    kept = [place / "precious", place / "cortex-other-of-1"]
    for each in kept:
        each.mkdir()
    (place / "cortex-tried-of-1").symlink_to(kept[0])
    (place / "cortex-tried-of-file").touch()
    made = held_folder.make("tried")
    assert {*place.iterdir()} == {*kept, place / "cortex-tried-of-1", place / "cortex-tried-of-file", made}
