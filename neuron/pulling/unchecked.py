"""Which files of a snapshot in the cache have come, or will, and were not compared with their checksums yet.

It is written down before they come: nobody takes them for good meanwhile, nor after whoever brought them was
ended. Several may bring files of one snapshot at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.gguf.splits import name_of
from workers.checkpoints.presence import gguf_files


def add(snapshot: Path, names: Iterable[str]) -> set[str]:
    """Note these; all that are noted. OSError where that cannot be written."""
    return _change(snapshot, lambda noted: noted | set(names))


def remove(snapshot: Path, names: Iterable[str]) -> None:
    """These have been compared. OSError where that cannot be written."""
    _change(snapshot, lambda noted: noted - set(names))


def of_model(path: Path) -> list[str]:
    """Those that are there of a model: of all in a folder, or of one GGUF file with its other parts."""
    is_file = path.suffix == SUFFIX and not path.is_dir()
    snapshot = path.parent if is_file else path
    if not (noted := _read(snapshot)):
        return []
    if is_file:
        noted = {name for name in noted if name_of(Path(name)) == name_of(path)}
    else:
        in_gguf = bool(gguf_files(path))
        noted = {name for name in noted if name.endswith(SUFFIX) == in_gguf}
    return sorted(name for name in noted if (snapshot / name).exists())


def _change(snapshot: Path, change: Callable[[set[str]], set[str]]) -> set[str]:
    from filelock import FileLock

    storage, note = snapshot.parents[1], _note(snapshot)
    storage.mkdir(parents=True, exist_ok=True)
    with FileLock(storage.parent / ".locks" / storage.name / f"{snapshot.name}.unchecked.lock"):
        names = change(_read(snapshot))
        if names:
            whole = note.with_name(f"{note.name}.new")
            whole.write_text("\n".join(sorted(names)))
            os.replace(whole, note)
        else:
            note.unlink(missing_ok=True)
    return names


def _read(snapshot: Path) -> set[str]:
    names: set[str] = set()
    with suppress(OSError, UnicodeDecodeError):
        names |= set(_note(snapshot).read_text().splitlines())
    return names


def _note(snapshot: Path) -> Path:
    return snapshot.parents[1] / f".unchecked.{snapshot.name}"
