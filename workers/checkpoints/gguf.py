"""Headers of GGUF files: enough to say what a file is. Nothing is served from them yet.

Magic, version, two counts, then so many metadata entries (name, type, value) and so many tensors (name,
dimensions, type, offset), all little-endian. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workers.checkpoints.files import open_file, refuse

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)
HEADER_LIMIT = 256 << 20  # bytes: vocabularies stand in it
MOST_ENTRIES = 1_000_000  # tensors, or entries of metadata
MOST_DIMENSIONS = 4
LONGEST_NAME = 65_535  # bytes
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TYPES = (  # in the order of their numbers
    "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS "
    "IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16"
)
TYPES = dict(enumerate(_TYPES.split())) | {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a file says of itself."""

    metadata: dict[str, Any]  # without its arrays
    types: dict[str, int]  # of tensors, and how many there are of each
    parameters: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    def __str__(self) -> str:
        family = self.architecture
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        layers = self.metadata.get(f"{family}.block_count")
        context = self.metadata.get(f"{family}.context_length")
        facts = [f"{family}, {self.parameters / 1e6:,.1f}M parameters"]
        facts += [f"{layers} layers"] if layers else []
        facts += [f"a context of {context:,}"] if isinstance(context, int) else []
        return ", ".join([*facts, f"tensors: {types}"])


def read_gguf(path: Path) -> Gguf:
    """The header of the file at `path`.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file: it is no GGUF, cut short, or larger than can be meant.
    """
    with open_file(path) as file:
        try:
            return _Reader(path, file).header()
        except (struct.error, OSError, ValueError) as error:
            refuse(path, f"is cut short or no GGUF file: {error}")


def files_in(path: Path) -> list[Path]:
    """The GGUF files at `path`: itself, or what the folder has of them."""
    if path.suffix == SUFFIX:
        return [path]
    try:
        return sorted(path / name for name in os.listdir(path) if name.endswith(SUFFIX))
    except (OSError, ValueError):  # no folder, or no name that a folder could have
        return []


def refuse_alone(folder: Path) -> None:
    """Refuse what holds a GGUF file and no other checkpoint, saying what it is."""
    files = [] if os.path.exists(folder / "config.json") else files_in(folder)
    if files:
        refuse(files[0], f"is a GGUF file ({read_gguf(files[0])}), and GGUF is not supported yet")


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file

    def header(self) -> Gguf:
        if self._bytes(4) != MAGIC:
            refuse(self._path, "is no GGUF file")
        version, tensors, entries = self._numbers("<IQQ")
        if version not in VERSIONS:
            refuse(self._path, f"is GGUF version {version}, and known are {', '.join(map(str, VERSIONS))}")
        if max(tensors, entries) > MOST_ENTRIES:
            refuse(self._path, f"says that it has {max(tensors, entries):,} entries, above {MOST_ENTRIES:,}")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name, kind = self._string(LONGEST_NAME), self._number("<I")
            value = self._value(kind)
            if kind != ARRAY:
                metadata[name] = value
        types: Counter[str] = Counter()
        names: set[str] = set()
        parameters = 0
        for _ in range(tensors):
            name, dimensions = self._string(LONGEST_NAME), self._number("<I")
            if name in names:
                refuse(self._path, f"names {name!r} twice in its header")
            names.add(name)
            if dimensions > MOST_DIMENSIONS:
                refuse(self._path, f"gives {name!r} {dimensions} dimensions")
            shape = self._numbers(f"<{dimensions}Q")
            kind, _ = self._numbers("<IQ")
            parameters += math.prod(shape)
            types[TYPES.get(kind, f"type {kind}")] += 1
        return Gguf(metadata, dict(types.most_common()), parameters)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(f"<{self._scalar(kind)}")
        kind, count = self._numbers("<IQ")
        if kind == STRING:
            for _ in range(self._bounded(count, 8)):
                self._skip(self._number("<Q"))
        else:
            size = struct.calcsize(f"<{self._scalar(kind)}")
            self._skip(self._bounded(count, size) * size)
        return None

    def _scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            refuse(self._path, f"has metadata of the unknown type {kind}")
        return SCALARS[kind]

    def _string(self, limit: int = HEADER_LIMIT) -> str:
        size = self._number("<Q")
        if size > limit:
            refuse(self._path, f"has a text of {size:,} bytes in its header, and {limit:,} is the limit")
        return self._bytes(size).decode(errors="replace")

    def _bounded(self, count: int, size: int) -> int:
        if count * size > HEADER_LIMIT:
            refuse(self._path, f"has a list of {count:,} entries in its header")
        return count

    def _skip(self, size: int) -> None:
        if self._file.tell() + size > HEADER_LIMIT:
            refuse(self._path, f"has a header of more than {HEADER_LIMIT:,} bytes")
        self._file.seek(size, 1)

    def _number(self, form: str) -> Any:
        return self._numbers(form)[0]

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _bytes(self, size: int) -> bytes:
        if self._file.tell() + size > HEADER_LIMIT:
            refuse(self._path, f"has a header of more than {HEADER_LIMIT:,} bytes")
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("its header ends too early")
        return data
