"""Which GGUF files are one model: a file alone, or all the parts of a set."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from workers.checkpoints import missing
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import SUFFIX, Gguf, read_header
from workers.checkpoints.safetensors import Tensor

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # as llama.cpp's tools name them
BESIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # files beside a model that are none
QUANTIZATION = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|F16|F32|MXFP4\w*|FP16)", re.IGNORECASE)
MOST_PARTS = 1000


def files_in(folder: Path) -> list[Path]:
    """The models in a folder, each by its file or the first one of its parts."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):  # no folder, or no name that a folder could have
        return []
    found: dict[str, Path] = {}
    for name in names:
        if name.endswith(SUFFIX) and not BESIDE.search(name):
            part = PART.fullmatch(name)
            found.setdefault(f"{part[1]} {part[3]}" if part else name, folder / name)
    return list(found.values())


def name_of(path: Path) -> str:
    """What the model in a file is called: the file's name, without what only says which part it is."""
    part = PART.fullmatch(path.name)
    return part[1] if part else path.stem


def label(path: Path) -> str:
    """What tells a file from those beside it: its quantisation, else its name."""
    found = QUANTIZATION.findall(name_of(path))
    return found[-1].upper() if found else name_of(path)


def by_label(files: list[Path]) -> dict[str, Path]:
    """Files by their labels; those that share one by their names."""
    labels = Counter(label(path) for path in files)
    return {label(path) if labels[label(path)] == 1 else name_of(path): path for path in files}


def parts_of(path: Path) -> list[Path]:
    """All files of the model that `path` is one of, in their order.

    Raises:
        CortexError: MODEL_LOAD_FAILED, one of them is not there.
    """
    part = PART.fullmatch(path.name)
    if part is None:
        return [path]
    name, count = part[1], int(part[3])
    if not 1 <= int(part[2]) <= count <= MOST_PARTS:
        refuse(path, f"is called part {int(part[2])} of {count}")
    paths = [path.with_name(f"{name}-{number:05}-of-{count:05}{SUFFIX}") for number in range(1, count + 1)]
    for each in paths:
        if not each.exists():
            rest = missing.rest(each)
            refuse(each, f"is missing, and {path.name} is another part of the same model{rest}")
    return paths


def read(path: Path) -> Gguf:
    """The header of a model: that of its only file, or of the first one with the tensors of all.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file that is missing, damaged, or a part of another model.
    """
    paths = parts_of(path)
    headers = [read_header(each) for each in paths]
    first, total = headers[0], headers[0].metadata.get("split.tensors.count")
    tensors: dict[str, Tensor] = {}
    for number, header in enumerate(headers):
        said = header.metadata.get("split.no", 0), header.metadata.get("split.count", 1) or 1
        if said != (number, len(paths)):
            called = f"part {number + 1} of {len(paths)}" if len(paths) > 1 else "a whole model"
            refuse(header.path, f"is called {called}, and has the split.no {said[0]} of {said[1]}")
        of = header.metadata.get("general.architecture", first.architecture)
        if of != first.architecture:
            refuse(header.path, f"is of a {of}, and {first.path.name} of a {first.architecture}")
        for name, tensor in header.tensors.items():
            if name in tensors:
                refuse(header.path, f"holds {name!r}, and so does {tensors[name].file.name}")
            tensors[name] = tensor
    if len(paths) > 1 and total is not None and total != len(tensors):
        refuse(first.path, f"says that the model has {total} tensors, and its parts have {len(tensors)}")
    return Gguf(first.path, first.metadata, tensors)
