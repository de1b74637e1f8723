"""What commands say where it cannot be shown or written: one line, and an exit code."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from gateway.store.key_store import KEYS

SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(
    folder: Path, *command: str, to: object = subprocess.PIPE, **environment: str
) -> tuple[int, str, str]:
    """Exit code, and what it says on both streams."""
    ended = subprocess.run(
        [SCRIPTS / command[0], *command[1:]],
        stdout=to,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        timeout=150,
        env=os.environ | {"XDG_STATE_HOME": str(folder)} | environment,
    )
    return ended.returncode, ended.stdout or "", ended.stderr


@pytest.mark.parametrize("command", [("cortex", "keys", "create", "ann"), ("neuron", "--version")])
def test_a_disk_without_room_is_told_in_a_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        code, _, error = run(tmp_path, *command, to=full)
    assert (code, error) == (1, f"{command[0]}: No space left on device\n")


def test_letters_that_a_terminal_does_not_have_are_escaped(tmp_path: Path) -> None:
    run(tmp_path, "cortex", "keys", "create", "Zoë")
    assert (tmp_path / "cortex" / KEYS.file).exists()
    code, said, error = run(tmp_path, "cortex", "keys", "list", PYTHONIOENCODING="ascii")
    assert (code, error) == (0, "")
    assert r"Zo\xeb" in said


def test_who_reads_no_further_is_told_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code, _, error = run(tmp_path, "neuron", "--version", to=write)
    os.close(write)
    assert (code, error) == (1, "")
