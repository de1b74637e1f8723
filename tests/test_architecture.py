"""docs/architecture.md is about the code that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = ("gateway", "ipc", "neuron", "tools", "workers")


def test_everything_that_it_names_is_there():
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?|(?:[a-z_]+/)+[a-z_]+)`", PAGE))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_department_stands_in_its_table():
    departments = {
        f"{path.parent.relative_to(ROOT)}/"
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
        if path.parent != ROOT / room
    }
    listed = set(re.findall(r"^\| `([a-z_/]+/)` \|", PAGE, re.M))
    assert departments - listed == set()


def test_the_files_that_it_says_to_begin_with_belong_to_their_department():
    rows = re.findall(r"^\| `([a-z_/]+/)` \|.*\| (.*) \|$", PAGE, re.M)
    assert rows
    for folder, files in rows:
        for file in re.findall(r"`(.*?)`", files):
            assert file.startswith(folder)


def test_it_is_one_page():
    assert len(PAGE.splitlines()) <= 125
