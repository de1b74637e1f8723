"""Headers of safetensors files, read and checked without touching a weight.

A file is an 8-byte little-endian length, that many bytes of JSON (tensor name to dtype, shape and the range
of its bytes in the rest of the file), and the bytes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from ipc.errors import Code, CortexError

T = TypeVar("T")

HEADER_LIMIT = 100_000_000  # bytes, as in the reference implementation
JSON_LIMIT = 100_000_000  # bytes of any other file
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is: `size` bytes at `offset` of `file`."""

    file: Path
    dtype: str  # a key of DTYPE_BYTES
    shape: tuple[int, ...]
    offset: int
    size: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=16)]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def refuse(path: Path, why: str) -> NoReturn:
    """Raise the one error of a checkpoint that cannot be loaded, which names the file."""
    raise CortexError(Code.MODEL_LOAD_FAILED, f"{path}: {why}", details={"file": str(path)})


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON file at `path` as a `kind`.

    Raises:
        CortexError: MODEL_LOAD_FAILED, also for JSON with NaN or Infinity in it, which JSON does not have.
    """
    try:
        with path.open("rb") as file:
            text = file.read(JSON_LIMIT + 1)
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror}")
    if len(text) > JSON_LIMIT:
        refuse(path, f"is larger than {JSON_LIMIT:,} bytes")
    return _decode(path, text, kind)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from one file or from the shards that its index names.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file: no weights, a shard missing or cut short, a header
            that does not describe its file, a tensor that is not in the shard that should have it.
    """
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    index = folder / INDEX
    if not index.exists():
        refuse(folder, f"holds neither {SINGLE} nor {INDEX}")
    weight_map = read_json(index, _Index).weight_map
    shards: dict[str, Mapping[str, Tensor]] = {}
    for name in dict.fromkeys(weight_map.values()):
        if Path(name).name != name:
            refuse(index, f"names a shard outside its folder: {name!r}")
        if not (folder / name).exists():
            refuse(folder / name, "is missing, and the index names it")
        shards[name] = read_header(folder / name)
    tensors = {}
    for tensor, name in weight_map.items():
        if tensor not in shards[name]:
            refuse(folder / name, f"does not hold {tensor!r}, which the index says it does")
        tensors[tensor] = shards[name][tensor]
    return tensors


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, in the order of their bytes.

    Raises:
        CortexError: MODEL_LOAD_FAILED when header and file do not fit together exactly.
    """
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header_size = int.from_bytes(file.read(8), "little")
            if file_size < 8 or header_size > file_size - 8:
                refuse(path, f"is cut short: {file_size:,} bytes do not even hold its header")
            if header_size > HEADER_LIMIT:
                refuse(
                    path, f"says that its header has {header_size:,} bytes, and {HEADER_LIMIT:,} is the limit"
                )
            text = file.read(header_size)
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror}")
    header = _decode(path, text, dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    entries = [(name, _decode(path, raw, _Entry, name)) for name, raw in header.items()]
    entries.sort(key=lambda entry: entry[1].data_offsets)
    data = 8 + header_size
    tensors, end = {}, 0
    for name, entry in entries:
        start, stop = entry.data_offsets
        if entry.dtype not in DTYPE_BYTES:
            refuse(path, f"has the unknown dtype {entry.dtype!r} in tensor {name!r}")
        if start != end:
            refuse(
                path, f"has {'an overlap' if start < end else 'a hole'} in its data before tensor {name!r}"
            )
        size = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
        if stop - start != size:
            refuse(path, f"gives tensor {name!r} {stop - start:,} bytes, and its shape needs {size:,}")
        tensors[name] = Tensor(path, entry.dtype, tuple(entry.shape), data + start, size)
        end = stop
    if data + end > file_size:
        refuse(path, f"is cut short: {file_size:,} bytes, and its header describes {data + end:,}")
    if data + end < file_size:
        refuse(path, f"has {file_size - data - end:,} bytes that its header does not describe")
    return tensors


def _decode(path: Path, text: Any, kind: type[T], where: str = "") -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        refuse(path, f"has bad JSON{' in ' + repr(where) if where else ''}: {error}")
