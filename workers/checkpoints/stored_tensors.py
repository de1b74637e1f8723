"""Which stored tensors the tensors of a model are, and in which files: checked against the headers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from workers.checkpoints.blocks import FORMATS, PLAIN
from workers.checkpoints.family import Sharing, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.quantisation.scheme import Scheme, Stored
from workers.checkpoints.safetensors import DTYPE_BYTES, Tensor
from workers.checkpoints.stacked import TRANSPOSED, transposed

# How names end of what stands in place of a weight, beside those that belong to it.
PACKED = re.compile(
    r"q_?weight|qzeros|_?scales?|_blocks|zeros?|g_idx|weight_(packed|shape|scale\w*|zero_point|global_scale)"
    r"|SCB|W_q|Qidxs|codes|codebooks"
)


class StoredTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of the model, and where it is stored.

    What is stored in several tensors, or in a layout that nothing computes with, names a conversion and the
    tensors that this one is made of. `dtype` is then the format that the conversion gives it. Where it names
    an `order`, its columns are kept as that tensor has them: at each place the number of the column there.
    """

    shape: tuple[int, ...]
    dtype: str  # of `blocks.FORMATS`, or a stored type that only a conversion reads
    file: int  # index in `ModelCard.files`
    offset: int  # of its first byte in the file
    sharing: Sharing
    conversion: str = ""  # of `workers.weights.conversions`
    sources: tuple[StoredTensor, ...] = ()
    order: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes in its file, or in those of its sources."""
        if self.sources:
            return sum(source.nbytes for source in self.sources)
        return nbytes(self.shape, self.dtype)


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of such a tensor in a file; `dtype` is one of `StoredTensor`."""
    if dtype not in FORMATS:
        return DTYPE_BYTES[dtype] * math.prod(shape)
    *rows, columns = shape or (1,)
    return FORMATS[dtype].row_bytes(columns) * math.prod(rows)


class WeightFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of weights as it was when its header was read."""

    name: str  # as a path from the folder
    size: int  # bytes
    changed: int  # ns since 1970


def check_tensors(
    path: Path, specs: Iterable[TensorSpec], tensors: Mapping[str, Tensor], scheme: Scheme | None = None
) -> tuple[list[WeightFile], dict[str, StoredTensor], set[str]]:
    """See that every tensor is there, in the shape that `path` promises: config.json, or a GGUF file.

    Returns:
        The files, what is in them by the model's names, and the files' names of all that.
    """
    folder = path.parent
    stored = Stored(folder, tensors)
    some_transposed = any(name.endswith(TRANSPOSED) for name in tensors)
    files = {path: 0} if path.suffix == SUFFIX else {}

    def place(tensor: Tensor, sharing: Sharing) -> StoredTensor:
        file = files.setdefault(tensor.file, len(files))
        return StoredTensor(tensor.shape, tensor.dtype, file, tensor.offset, sharing)

    found: dict[str, StoredTensor] = {}
    for name, shape, sharing in specs:
        parts = transposed(stored, name, shape) if some_transposed else None
        if parts is None and scheme is not None:
            parts = scheme.parts(stored, name, shape)
        if parts is not None:
            elements = FORMATS[parts.format].elements
            if shape[-1] % elements:
                refuse(
                    parts.sources[0].file,
                    f"{name!r} is {parts.format}, in blocks of {elements}, which do not divide its "
                    f"{shape[-1]} columns",
                )
            sources = [place(source, "none") for source in parts.sources]
            first, order = sources[0], ""
            if parts.order is not None:
                order = parts.order.name
                sources.append(place(parts.order.groups, "none"))
                found[order] = _order(sources[-1])
            found[name] = StoredTensor(
                *(shape, parts.format, first.file, first.offset, sharing),
                *(parts.conversion, tuple(sources), order),
            )
            continue
        tensor = stored.find(name)
        if tensor is None:
            where = path if path in files else folder
            refuse(where, f"the tensor {name!r} is in none of its files{_packed(name, path, tensors)}")
        if tensor.shape != shape:
            refuse(tensor.file, f"{name!r} is {list(tensor.shape)}, and {path.name} wants {list(shape)}")
        if tensor.dtype not in (FORMATS if len(shape) == 2 else PLAIN):
            what = "weights" if len(shape) == 2 else "vectors"
            refuse(tensor.file, f"{name!r} is {tensor.dtype}, and {what} are {', '.join(PLAIN)}")
        found[name] = place(tensor, sharing)
    return [weight_file(file, folder) for file in files], found, stored.used


def _packed(name: str, path: Path, tensors: Iterable[str]) -> str:
    """What is said of tensors that stand where the weight of that name is missing."""
    module = name.removesuffix("weight")
    for other in tensors:
        if other.startswith(module) and PACKED.fullmatch(other, len(module)):
            return f", and {other!r} is: the weights are quantised, and {path.name} does not say how"
    return ""


def _order(groups: StoredTensor) -> StoredTensor:
    """The columns in the order of their groups, on every rank, in four bytes each."""
    return StoredTensor(groups.shape, groups.dtype, groups.file, groups.offset, "wide", "order", (groups,))


def weight_file(path: Path, folder: Path) -> WeightFile:
    """The file at `path`, which is somewhere in `folder`, as it is now."""
    status = path.stat()
    return WeightFile(str(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
