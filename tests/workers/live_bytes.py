"""What a computation holds at most beside its weights, counted as tensors come and go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workers.vision.tower import Tower, seen


def most_held(tower: Tower, size: Sequence[int]) -> int:
    """Bytes, while it looks at an image of these pixels."""
    weights = [piece.into for part in tower.weights.parts() for piece in part.pieces]
    image = torch.zeros(*size, 3, dtype=torch.uint8)
    with torch.no_grad(), Live([*weights, image]) as live:
        seen(tower.look(image))
    return live.most


class Live(TorchDispatchMode):
    """Counts the bytes of what operations made and is still there, and the most that it was."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.note(each.untyped_storage())
        return made

    def note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if not size or key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
