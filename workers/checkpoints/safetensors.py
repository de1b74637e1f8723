"""Headers of safetensors files, read and checked without touching a weight.

A file is an 8-byte little-endian length, that many bytes of JSON (tensor name to dtype, shape and the range
of its bytes in the rest of the file), and the bytes. https://huggingface.co/docs/safetensors
The library of that name, which loads nothing here either, has to agree.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from safetensors import SafetensorError, safe_open

from ipc.errors import CortexError
from workers.checkpoints import missing
from workers.checkpoints.files import decode_json, open_file, read_json, refuse, refuse_absent

HEADER_LIMIT = 100_000_000  # bytes, as in the reference implementation
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


def has_all_files(folder: Path) -> bool:
    """Whether all files of the weights are there, by their names; an index that cannot be read names none."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return (folder / SINGLE).exists()
    with suppress(CortexError):
        return all((folder / name).exists() for name in read_json(folder / INDEX, _Index).weight_map.values())
    return True


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from one file or, where there is none, from the shards of its index.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file: no weights, a shard missing or cut short, a header
            that does not describe its file, a tensor that is not in the shard that should have it.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        return read_header(single)
    if not index.exists():
        for path in (single, index):
            if path.is_symlink():
                refuse_absent(path)
        refuse(folder, f"holds neither {SINGLE} nor {INDEX}{missing.instead(folder)}")
    weight_map = read_json(index, _Index).weight_map
    shards: dict[str, Mapping[str, Tensor]] = {}
    for name in dict.fromkeys(weight_map.values()):
        if Path(name).name != name:
            refuse(index, f"names a shard outside its folder: {name!r}")
        if not (folder / name).exists():
            refuse(folder / name, f"is missing, and the index names it{missing.rest(folder / name)}")
        shards[name] = read_header(folder / name)
    tensors: dict[str, Tensor] = {}
    for tensor, name in weight_map.items():
        if tensor not in shards[name]:
            refuse(folder / name, f"does not hold {tensor!r}, which the index says it does")
        tensors[tensor] = shards[name][tensor]
    for name, shard in shards.items():
        for tensor in shard:
            if weight_map.get(tensor, name) != name:
                refuse(folder / name, f"holds {tensor!r}, and so does {weight_map[tensor]}")
    return tensors


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, in the order of their bytes.

    Raises:
        CortexError: MODEL_LOAD_FAILED when header and file do not fit together exactly.
    """
    with open_file(path) as file:
        file_size = os.fstat(file.fileno()).st_size
        try:
            beginning = file.read(8)
            header_size = int.from_bytes(beginning, "little")
            if not 0 < header_size <= file_size - 8:
                if other := missing.begins_as(beginning):
                    refuse(path, f"is no safetensors file{other}")
                refuse(path, f"is cut short: {file_size:,} bytes do not even hold its header")
            if header_size > HEADER_LIMIT:
                refuse(
                    path, f"says that its header has {header_size:,} bytes, and {HEADER_LIMIT:,} is the limit"
                )
            text = file.read(header_size)
        except OSError as error:
            refuse(path, f"cannot be read: {error.strerror}")
    header = decode_json(path, text, dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    if text.count(b'"data_offsets"') != len(header):
        _refuse_twice(path, text)
    entries = _entries(path, header)
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
    try:
        with safe_open(path, framework="numpy") as opened:
            agreed = set(opened.offset_keys()) == tensors.keys()
    except (SafetensorError, OSError) as error:
        refuse(path, f"is refused by the safetensors library: {error}")
    if not agreed:
        refuse(path, "is read differently by the safetensors library")
    return tensors


def _entries(path: Path, header: Mapping[str, msgspec.Raw]) -> list[tuple[str, _Entry]]:
    """What a header says of each tensor."""
    decode = msgspec.json.Decoder(_Entry).decode
    try:
        return [(name, decode(raw)) for name, raw in header.items()]
    except msgspec.MsgspecError:  # of one of them: which it is, is said at twice the cost
        return [(name, decode_json(path, raw, _Entry, name)) for name, raw in header.items()]


def _refuse_twice(path: Path, text: bytes) -> None:
    """Refuse a header with a name that stands in it more than once, of which a decoder keeps the last."""

    def see(pairs: list[tuple[str, object]]) -> dict[str, object]:
        name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
        if count > 1:
            refuse(path, f"names {name!r} twice in its header")
        return dict(pairs)

    json.loads(text, object_pairs_hook=see)
