"""Weights that are stored in several tensors, or in a layout that nothing computes with, to what is kept.

The card names a conversion (`StoredTensor.conversion`), which runs in the threads of the loader, and the
format that comes of it (`StoredTensor.dtype`).
"""

from __future__ import annotations

from torch import Tensor

from workers.checkpoints.stored_tensors import StoredTensor
from workers.weights import eight_bits, four_bits, llama_cpp
from workers.weights.reading import Conversion, Read


def transposed(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """What is stored with inputs as rows."""
    [source] = tensor.sources
    return read(source, columns, rows).t().contiguous()


def transposed_second(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same of columns that others stand before, as many as there are rows."""
    before = tensor.shape[0]
    return transposed(read, tensor, range(before + rows.start, before + rows.stop), columns)


def order(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The numbers of columns, those of a group together; what is stored is the group of each."""
    [groups] = tensor.sources
    return four_bits.ordered(read, groups)[rows.start : rows.stop].unsqueeze(1)


CONVERSIONS: dict[str, Conversion] = {
    "apart": eight_bits.apart,
    "awq": four_bits.awq,
    "bitsandbytes_4": four_bits.bitsandbytes_4,
    "bitsandbytes_8": eight_bits.bitsandbytes_8,
    "decaying_gates": llama_cpp.decaying_gates,
    "fp8_blocks": eight_bits.fp8_blocks,
    "gptq_4": four_bits.gptq_4,
    "gptq_8": four_bits.gptq_8,
    "gptq_v2_4": four_bits.gptq_v2_4,
    "gptq_v2_8": four_bits.gptq_v2_8,
    "halves_apart": llama_cpp.halves_apart,
    "latent_heads": llama_cpp.latent_heads,
    "less_one": llama_cpp.less_one,
    "mxfp4": four_bits.mxfp4,
    "nvfp4": four_bits.nvfp4,
    "nvfp4_divided": four_bits.nvfp4_divided,
    "opening_gates": llama_cpp.opening_gates,
    "order": order,
    "packed_4": four_bits.packed_4,
    "packed_8": four_bits.packed_8,
    "scaled_rows": eight_bits.scaled_rows,
    "tiled_heads": llama_cpp.tiled_heads,
    "tiled_rates": llama_cpp.tiled_rates,
    "transposed": transposed,
    "transposed_second": transposed_second,
}
