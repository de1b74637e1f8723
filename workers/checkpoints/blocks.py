"""Block formats: how rows of a weight are stored and kept, in blocks of elements that share a scale.

A row of a tensor in such a format is its blocks in order; the plain types are blocks of one element. Names
and layouts are ggml's (https://github.com/ggml-org/ggml, `ggml-common.h`); those below are of formats that
are made when a model is loaded. What they mean stands in `workers/weights/dequantise.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, get_args

from ipc.model_settings import Quantization

GROUP, STEP = 32, 128  # columns that a tensor core multiplies at once, and that a step of a kernel takes
LINE = 16  # bytes: a load of a GPU's, at most


def filled(columns: int) -> int:
    """Columns of zeros that the last step of a row has beside its own."""
    return -columns % STEP


class Format(NamedTuple):
    """`elements` consecutive elements of a row take `nbytes` bytes, and a row takes `row_nbytes` besides."""

    name: str
    elements: int
    nbytes: int
    row_nbytes: int = 0  # after its blocks: what all of them share

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of so many elements, which are whole blocks."""
        return columns // self.elements * self.nbytes + self.row_nbytes

    def filling(self, columns: int) -> int:
        """Bytes that such a row takes besides where a GPU reads whole steps of it, and whole lines."""
        if columns % GROUP:  # it is read in another way
            return 0
        size = self.row_bytes(columns + filled(columns))
        return -(-size // LINE) * LINE - self.row_bytes(columns)

    def columns(self, row_bytes: int) -> int:
        """Elements in a row of so many bytes."""
        return (row_bytes - self.row_nbytes) // self.nbytes * self.elements


FORMATS = {
    form.name: form
    for form in (
        Format("F32", 1, 4),
        Format("F16", 1, 2),
        Format("BF16", 1, 2),
        Format("Q4_0", 32, 18),
        Format("Q4_1", 32, 20),
        Format("Q5_0", 32, 22),
        Format("Q5_1", 32, 24),
        Format("Q8_0", 32, 34),
        Format("Q2_K", 256, 84),
        Format("Q3_K", 256, 110),
        Format("Q4_K", 256, 144),
        Format("Q5_K", 256, 176),
        Format("Q6_K", 256, 210),
        Format("IQ1_S", 256, 50),
        Format("IQ1_M", 256, 56),
        Format("IQ2_XXS", 256, 66),
        Format("IQ2_XS", 256, 74),
        Format("IQ2_S", 256, 82),
        Format("IQ3_XXS", 256, 98),
        Format("IQ3_S", 256, 110),
        Format("IQ4_NL", 32, 18),
        Format("IQ4_XS", 256, 136),
        Format("Q1_0", 128, 18),
        Format("Q2_0", 64, 18),
        Format("TQ1_0", 256, 54),
        Format("TQ2_0", 256, 66),
        Format("MXFP4", 32, 17),
        # not ggml's: a row's numbers stand first, and then its scales, float32, one a block
        Format("INT8_128", 128, 132),
        Format("FP8_128", 128, 132),
        Format("INT8_ROW", 1, 1, 16),  # one for the row, four times: so that rows begin at 16 bytes on a GPU
        Format("FP8_ROW", 1, 1, 16),
        Format("NF4_64", 64, 36),
        Format("FP4_64", 64, 36),
        Format("NVFP4", 16, 9, 16),  # a scale of e4m3 a block, and one float32, four times
        Format("INT4_32", 32, 20),  # with a zero point in the last four bits of each scale
        Format("INT4_64", 64, 36),
        Format("INT4_128", 128, 68),
    )
}
PLAIN = ("F32", "F16", "BF16")


class Formats(dict[str, str]):
    """The block formats of weights, by their names.

    Attributes:
        orders: of weights whose columns are not kept in their own order, the tensor that has it, by name.
    """

    def __init__(self, formats: Mapping[str, str] | None = None) -> None:
        super().__init__(formats or {})
        self.orders: dict[str, str] = {}


# What `quantization` makes of a weight: the first format whose blocks the columns of a rank divide into.
_AT_LOAD: dict[Quantization, tuple[str, ...]] = {
    "q8": ("Q8_0",),
    "q6": ("Q6_K", "Q8_0"),
    "q4": ("Q4_K", "Q8_0"),
    "int8": ("INT8_128", "Q8_0"),
    "fp8": ("FP8_128", "Q8_0"),
}
# And of the weights that cost most in quality, of some layers: as llama.cpp has them in a Q4_K_M.
_DEAR: dict[Quantization, tuple[str, ...]] = _AT_LOAD | {"q4": ("Q6_K", "Q8_0")}
DEAR = re.compile(r".*\.layers\.(\d+)\..*\b(?:v_proj|down_proj)\.weight")
DEAR_ENDS = ("v_proj.weight", "down_proj.weight")
# And of embedding and head, which cost more in quality than they take: what llama.cpp chooses for a Q4_K_M.
_VOCABULARY: dict[Quantization, tuple[str, ...]] = {
    "q8": ("Q8_0",),
    "q6": ("Q6_K", "Q8_0"),
    "q4": ("Q6_K", "Q8_0"),
    "int8": ("Q8_0",),
    "fp8": ("Q8_0",),
}
QUANTIZATIONS = get_args(Quantization)


def at_load(quantization: Quantization, name: str, layers: int, columns: int, vocabulary: bool) -> str | None:
    """The format that a weight is given; None: it stays as it is.

    Args:
        layers: of the model.
        columns: on each rank.
        vocabulary: whether its rows are tokens.
    """
    names = (_VOCABULARY if vocabulary else _DEAR if is_dear(name, layers) else _AT_LOAD)[quantization]
    return next((name for name in names if columns % FORMATS[name].elements == 0), None)


def is_dear(name: str, layers: int) -> bool:
    """Whether it is a weight that costs most in quality, of a layer that has more bits."""
    if not name.endswith(DEAR_ENDS):  # as most of thousands
        return False
    return (found := DEAR.fullmatch(name)) is not None and _has_more_bits(int(found[1]), layers)


def _has_more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last, and every third between (llama.cpp's `use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
