"""What many tests want, made once: tiny checkpoints, and the library of compiled kernels."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from tests.workers import checkpoints
from tests.workers.compiled_library import built
from workers.kernels import compiled


class Tiny(NamedTuple):
    folder: Path
    oracle: PreTrainedModel


@pytest.fixture(autouse=True)
def nothing_old_is_collected() -> None:
    """Every load collects garbage several times, each of them a twentieth of a second among all that
    transformers and the tests before are made of. What the last test left in circles goes before it is kept.
    """
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


@pytest.fixture(scope="session")
def built_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """It, whether or not it was installed; or a skipped test."""
    return built(tmp_path_factory)


@pytest.fixture(scope="module")
def compiled_library(built_library: ctypes.CDLL) -> Iterator[None]:
    """Products are those of the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: built_library)
        yield


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte more than there is: whoever believes a size that cannot be meant fails, and nothing else."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
