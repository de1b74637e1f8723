"""Whether a model is at a path, and whether all of it is, by the names of files alone."""

from __future__ import annotations

import os
from pathlib import Path

from ipc.errors import CortexError
from workers.checkpoints.gguf import splits
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.safetensors import INDEX, SINGLE, has_all_files

CONFIG = "config.json"


def is_checkpoint(path: Path) -> bool:
    """Whether somebody put a model there, of whatever kind and however much of it."""
    return (
        os.path.exists(path / CONFIG)
        or bool(splits.files_in(path))
        or (path.suffix == SUFFIX and os.path.isfile(path))
    )


def is_whole(path: Path) -> bool:
    """Whether none of the files is missing that a model at `path` has by their names, whatever is in them."""
    files = [path] if path.suffix == SUFFIX and not path.is_dir() else gguf_files(path)
    if not files:
        return has_all_files(path)
    try:
        return all(map(splits.parts_of, files))
    except CortexError:
        return False


def gguf_files(folder: Path) -> list[Path]:
    """The models in GGUF files that `folder` has, where it is no checkpoint of Hugging Face's."""
    plain = any(os.path.exists(folder / name) for name in (SINGLE, INDEX))
    return [] if plain else splits.files_in(folder)
