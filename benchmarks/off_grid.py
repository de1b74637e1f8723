"""A GGUF file with plain weights where another has blocks: what quantisers are given, to be compared."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy

BLOCK = 32  # weights of a row that have a step in common
STEPS = 15  # from the least of these to the largest, as in 4 bits
OWN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")  # the writer's


def write(source: Path, target: Path, seed: int = 0) -> None:
    """Write the model in `source` with its matrices in float16, each weight moved by half a step at most.

    A weight that comes out of blocks lies on their grid, and the same format takes it back as it is. Moved at
    random within its step, it is where it may have been before that.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if not field.name.startswith(OWN):
            listed = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=listed)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    generator = numpy.random.default_rng(seed)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights if weights.ndim == 1 else moved(weights, generator))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def moved(weights: numpy.ndarray, generator: numpy.random.Generator) -> numpy.ndarray:  # [rows, columns]
    blocks = weights.reshape(-1, BLOCK)
    steps = (blocks.max(axis=1) - blocks.min(axis=1)) / STEPS
    noise = generator.random(blocks.shape, numpy.float32) - 0.5
    return (blocks + noise * steps[:, None]).reshape(weights.shape).astype(numpy.float16)
