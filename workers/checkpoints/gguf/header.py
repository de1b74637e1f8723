"""Headers of GGUF files, read and checked without touching a weight.

Magic, version, two counts, then so many metadata entries (name, type, value) and so many tensors (name,
dimensions, type, offset), all little-endian. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
The package `gguf` reads the same, and is the reference in tests; but it makes an array of each text of a
vocabulary, and maps the file, which kills a process when somebody cuts it short. Here lists are skipped until
they are asked for.
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from workers.checkpoints import missing
from workers.checkpoints.blocks import FORMATS
from workers.checkpoints.files import open_file, refuse
from workers.checkpoints.safetensors import Tensor

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)
HEADER_LIMIT = 256 << 20  # bytes: vocabularies stand in it
MOST_ENTRIES = 1_000_000  # tensors, or entries of metadata
MOST_DIMENSIONS = 4
MOST_ELEMENTS = 1 << 50  # of a tensor
LONGEST_NAME = 65_535  # bytes
BLOCK = 1 << 20  # bytes that are read at once
ALIGNMENT = 32  # bytes, where `general.alignment` does not say
STRING, ARRAY, FLOAT32, BOOL = 8, 9, 6, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TYPES = (  # in the order of their numbers
    "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS "
    "IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16"
)
TYPES = dict(enumerate(_TYPES.split())) | {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4_64"}
TYPES |= {41: "Q1_0", 42: "Q2_0"}
# Elements and bytes of a block, of types that may stand in a file and are no weights here.
OTHERS = {"I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8), "F64": (1, 8), "Q8_1": (32, 40)}
OTHERS |= {"Q8_K": (256, 292), "NVFP4_64": (64, 36)}
_LENGTH = struct.Struct("<Q").unpack_from


class List(NamedTuple):
    """A list in the metadata, which is read when it is asked for."""

    kind: int  # of its entries
    count: int
    offset: int  # of its first entry in the file


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a file says of itself."""

    path: Path
    metadata: dict[str, Any]  # a `List` for a list
    tensors: dict[str, Tensor]  # under ggml's names, in shapes whose last dimension is that of a row

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or all of a list: texts, or numbers as they are.

        Raises:
            CortexError: MODEL_LOAD_FAILED, the file was cut short meanwhile.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, List):
            return value
        with open_file(self.path) as file:
            reader = Reader(self.path, file, value.offset)
            with reader.errors():
                return reader.list(value.kind, value.count)

    def floats(self, name: str) -> list[float]:
        """All of a small tensor of float32.

        Raises:
            CortexError: MODEL_LOAD_FAILED, it is something else.
        """
        tensor = self.tensors[name]
        if tensor.dtype != "F32" or tensor.size > BLOCK:
            refuse(tensor.file, f"has {name!r} in {tensor.dtype} {list(tensor.shape)}")
        with open_file(tensor.file) as file:
            file.seek(tensor.offset)
            data = file.read(tensor.size)
        if len(data) < tensor.size:
            refuse(tensor.file, "was cut short while it was read")
        return list(struct.unpack(f"<{tensor.size // 4}f", data))

    def __str__(self) -> str:
        family = self.architecture
        types = Counter(tensor.dtype for tensor in self.tensors.values()).most_common()
        parameters = sum(math.prod(tensor.shape) for tensor in self.tensors.values())
        layers = self.metadata.get(f"{family}.block_count")
        context = self.metadata.get(f"{family}.context_length")
        facts = [f"{family}, {parameters / 1e6:,.1f}M parameters"]
        facts += [f"{layers} layers"] if layers else []
        facts += [f"a context of {context:,}"] if isinstance(context, int) else []
        return ", ".join([*facts, "tensors: " + ", ".join(f"{count} {name}" for name, count in types)])


def read_header(path: Path) -> Gguf:
    """The header of the file at `path`, checked against its size.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file: it is no GGUF, cut short, larger than can be meant, or
            its tensors lie outside of it or over one another.
    """
    with open_file(path) as file:
        reader = Reader(path, file)
        with reader.errors():
            return reader.header(os.fstat(file.fileno()).st_size)


class Reader:
    """Reads values one after the other, from `offset` of a file on."""

    def __init__(self, path: Path, file: BinaryIO, offset: int = 0) -> None:
        self._path, self._file = path, file
        self._buffer, self._start, self._at = b"", offset, 0  # bytes, where they begin, and what comes next
        file.seek(offset)

    def errors(self) -> _Refusing:
        """A context in which what goes wrong is a refusal of the file."""
        return _Refusing(self._path)

    def header(self, file_size: int) -> Gguf:
        """All of it; raises what `errors` refuses."""
        if (beginning := self._bytes(4)) != MAGIC:
            refuse(self._path, f"is no GGUF file{missing.begins_as(beginning)}")
        version, tensors, entries = self._numbers("<IQQ")
        if version not in VERSIONS:
            big = version & 0xFFFF == 0 and version >> 24 in VERSIONS
            known = ", ".join(map(str, VERSIONS))
            what = "for a big-endian machine" if big else f"version {version}, and known are {known}"
            refuse(self._path, f"is GGUF {what}")
        if max(tensors, entries) > MOST_ENTRIES:
            refuse(self._path, f"says that it has {max(tensors, entries):,} entries, above {MOST_ENTRIES:,}")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name, kind = self._string(LONGEST_NAME), self._number("<I")
            if name in metadata:
                refuse(self._path, f"has the metadata {name!r} twice")
            metadata[name] = self._value(kind)
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name, dimensions = self._string(LONGEST_NAME), self._number("<I")
            if name in found:
                refuse(self._path, f"names {name!r} twice in its header")
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                refuse(self._path, f"gives {name!r} {dimensions} dimensions")
            shape = self._numbers(f"<{dimensions}Q")[::-1]
            found[name] = (shape, *self._numbers("<IQ"))
        data = self._start + self._at
        return Gguf(self._path, metadata, self._tensors(found, data, metadata, file_size))

    def list(self, kind: int, count: int) -> list[Any]:
        """So many entries of a list."""
        if kind == STRING:
            return list(self._strings(count))
        form = SCALARS[kind]
        return list(self._numbers(f"<{count}{form}"))

    def _tensors(
        self,
        found: Mapping[str, tuple[tuple[int, ...], int, int]],
        data: int,
        metadata: Mapping[str, Any],
        file_size: int,
    ) -> dict[str, Tensor]:
        """Where the tensors are, whose data begins after `data` bytes of header."""
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            refuse(self._path, f"general.alignment {alignment} is no power of two")
        data += -data % alignment
        tensors, end, before = {}, 0, ""
        for name, (shape, number, offset) in sorted(found.items(), key=lambda item: item[1][2]):
            kind = TYPES.get(number, "")
            form = FORMATS.get(kind)
            elements, nbytes = (form.elements, form.nbytes) if form else OTHERS.get(kind, (0, 0))
            if not elements:
                refuse(self._path, f"has {name!r} in the unknown type {number}")
            if not 0 < math.prod(shape) <= MOST_ELEMENTS:
                refuse(self._path, f"gives {name!r} the shape {list(shape)}")
            if shape[-1] % elements:
                refuse(
                    self._path, f"has {name!r} in {kind}, and rows of {shape[-1]:,} are no whole blocks of it"
                )
            size = math.prod(shape) // elements * nbytes
            if offset % alignment:
                refuse(self._path, f"has {name!r} at an offset that is no multiple of {alignment}")
            if offset < end:
                refuse(self._path, f"has {name!r} in the bytes of {before!r}")
            if data + offset + size > file_size:
                needs = data + offset + size
                refuse(
                    self._path, f"is cut short: it has {file_size:,} bytes, and {name!r} ends at {needs:,}"
                )
            if offset - end >= alignment:  # what is of a type that is too small leaves a hole
                what = f"{offset - end:,} bytes before {name!r} that are no tensor's"
                refuse(self._path, f"has {what}: its types, shapes or offsets are wrong")
            tensors[name] = Tensor(self._path, kind, shape, data + offset, size)
            end, before = offset + size, name
        return tensors

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            value = self._number(f"<{self._scalar(kind)}")
            return _shortest(value) if kind == FLOAT32 else value
        kind, count = self._numbers("<IQ")
        found = List(kind, count, self._start + self._at)
        if kind == STRING:
            self._skip_strings(self._bounded(count, 8))
        else:
            size = struct.calcsize(f"<{self._scalar(kind)}")
            self._skip(self._bounded(count, size) * size)
        return found

    def _scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            refuse(self._path, f"has metadata of the unknown type {kind}")
        return SCALARS[kind]

    def _string(self, limit: int = HEADER_LIMIT) -> str:
        size = self._number("<Q")
        if size > limit:
            refuse(self._path, f"has a text of {size:,} bytes in its header, and {limit:,} is the limit")
        return self._bytes(size).decode(errors="replace")

    def _strings(self, count: int) -> Iterator[str]:
        buffer, at = self._buffer, self._at
        for _ in range(count):  # hundreds of thousands
            if at + 8 <= len(buffer) and (end := at + 8 + _LENGTH(buffer, at)[0]) <= len(buffer):
                yield buffer[at + 8 : end].decode(errors="replace")
                at = end
            else:
                self._at = at
                yield self._string()
                buffer, at = self._buffer, self._at
        self._at = at

    def _skip_strings(self, count: int) -> None:
        buffer, at = self._buffer, self._at
        for _ in range(count):
            if at + 8 <= len(buffer) and (end := at + 8 + _LENGTH(buffer, at)[0]) <= len(buffer):
                at = end
            else:
                self._at = at
                self._skip(self._number("<Q"))
                buffer, at = self._buffer, self._at
        self._at = at

    def _bounded(self, count: int, size: int) -> int:
        if count * size > HEADER_LIMIT:
            refuse(self._path, f"has a list of {count:,} entries in its header")
        return count

    def _number(self, form: str) -> Any:
        return self._numbers(form)[0]

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _skip(self, size: int) -> None:
        if self._at + size <= len(self._buffer):
            self._at += size
            return
        self._start, self._at, self._buffer = self._start + self._at + size, 0, b""
        self._check()
        self._file.seek(self._start)

    def _bytes(self, size: int) -> bytes:
        at = self._at
        if at + size > len(self._buffer):
            self._check(size)
            rest = self._buffer[at:]
            self._buffer = rest + self._file.read(max(BLOCK, size))
            self._start, at = self._start + at, 0
            if size > len(self._buffer):
                raise ValueError("its header ends too early")
        self._at = at + size
        return self._buffer[at : at + size]

    def _check(self, size: int = 0) -> None:
        if self._start + self._at + size > HEADER_LIMIT:
            refuse(self._path, f"has a header of more than {HEADER_LIMIT:,} bytes")


class _Refusing:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, struct.error | OSError | ValueError | OverflowError):
            refuse(self._path, f"is cut short or no GGUF file: {error}")


def _shortest(value: float) -> float:
    """The shortest decimal number that is this float32: 1e-06 for 9.99999997475e-07."""
    if not math.isfinite(value):
        return value
    single = struct.pack("<f", value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short) < 3.4e38 and struct.pack("<f", short) == single:
            return short
    return value
