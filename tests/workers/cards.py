"""As much of a card as a test needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from workers.checkpoints.safetensors import read_tensors
from workers.checkpoints.stored_tensors import StoredTensor, WeightFile


def card_of(folder: Path) -> SimpleNamespace:
    """As much of a card as reading takes, of whatever tensors are in `folder`."""
    stored = read_tensors(folder)
    files = sorted({tensor.file for tensor in stored.values()})
    tensors = {
        name: StoredTensor(tensor.shape, tensor.dtype, files.index(tensor.file), tensor.offset, "none")
        for name, tensor in stored.items()
    }
    known = [WeightFile(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return SimpleNamespace(folder=str(folder), files=known, tensors=tensors)
