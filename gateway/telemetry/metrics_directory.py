"""Where the gunicorn processes of one gateway keep their counts: a directory that goes when the master goes.

prometheus-client reads its place from the environment when it is imported, so nothing here imports it early.
"""

from __future__ import annotations

import atexit
import os
import shutil
from pathlib import Path

from ipc import held_folder

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def create() -> None:
    """Make a directory of this process's own, for it and its children; removed when this process exits."""
    path = str(held_folder.make("metrics"))
    os.environ[VARIABLE] = path
    atexit.register(_remove, path, os.getpid())


def ensure() -> None:
    """Make one where no parent has."""
    if not os.path.isdir(os.environ.get(VARIABLE, "")):
        create()


def beside(name: str) -> Path | None:
    """The file of that name there, for what else these processes share; None where there is no directory."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) / name if folder else None


def forget(pid: int) -> None:
    """Take out what a child that ended had in flight; its counts stay."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)


def forget_gone() -> None:
    """The same, of every process that is no more: one that a child started may have died with it."""
    folder = Path(os.environ[VARIABLE])
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        if not os.path.exists(f"/proc/{pid}"):
            forget(int(pid))


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # forked children inherit the handler
        shutil.rmtree(path, ignore_errors=True)
