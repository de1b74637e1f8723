"""The library of compiled kernels for tests, built where no install did."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from workers.kernels import compiled


def built(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library, or a skipped test."""
    found = compiled.library()
    if found is None:
        if shutil.which("gcc") is None:
            pytest.skip("there is no compiler")
        path = tmp_path_factory.mktemp("library") / "library.so"
        found = compiled.load(build(compiled.FOLDER, path, "-O1"))
    if found is None:
        pytest.skip("this CPU has no AVX2")
    return found


def build(folder: Path, path: Path, *options: str) -> Path:
    """Compile the sources in `folder`; returns `path`."""
    sources = [str(folder / name) for name in compiled.SOURCES if name.endswith(".c")]
    options = ("-std=gnu11", "-fopenmp", "-shared", "-fPIC", *options)
    subprocess.run(["gcc", *options, "-o", str(path), *sources], check=True, timeout=120)
    return path
