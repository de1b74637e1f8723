"""The tiny checkpoints, written once for all tests that want them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from tests.workers import checkpoints


class Tiny(NamedTuple):
    folder: Path
    oracle: PreTrainedModel


@pytest.fixture(scope="session", autouse=True)
def nothing_old_is_collected() -> None:
    """Every load collects garbage: a quarter of a second, among all that transformers is made of."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """`tiny(name)` is the folder of that variant, and transformers with the same weights."""
    torch.set_num_threads(1)

    @cache
    def make(name: str) -> Tiny:
        folder = tmp_path_factory.mktemp(name)
        return Tiny(folder, checkpoints.write(name, folder))

    return make
