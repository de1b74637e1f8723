"""Which family reads a checkpoint, by the name of its architecture."""

from __future__ import annotations

from collections.abc import Iterable

from workers.checkpoints.families.llama import LLAMA
from workers.checkpoints.families.mistral import MISTRAL
from workers.checkpoints.families.qwen3 import QWEN3
from workers.checkpoints.family import Family

FAMILIES = {family.name: family for family in (LLAMA, MISTRAL, QWEN3)}
ARCHITECTURES = {name: family for family in FAMILIES.values() for name in family.architectures}


def find(architectures: Iterable[str]) -> tuple[str, Family] | None:
    """The first of these names that is known, and its family."""
    return next(((name, ARCHITECTURES[name]) for name in architectures if name in ARCHITECTURES), None)
