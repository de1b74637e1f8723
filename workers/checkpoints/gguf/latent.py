"""What llama.cpp's converters made of the matrices that all heads have for a latent vector: two of one."""

from __future__ import annotations

from workers.checkpoints.blocks import FORMATS
from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation.scheme import Parts, Scheme, Stored, reshaped

JOINED = "kv_b_proj"  # of each head the rows of its keys, then those of its values


def _find(stored: Stored, module: str, shape: tuple[int, int]) -> Parts | None:
    """Those of keys lie as `[heads, rank, key]`, those of values as `[heads, value, rank]`."""
    before = module.removesuffix(JOINED)
    keys = stored.find(f"{before}k_b_proj.weight")
    if before == module or keys is None:
        return None
    values = stored.find(f"{before}v_b_proj.weight")
    if values is None:
        refuse(keys.file, f"has {before}k_b_proj.weight, and not {before}v_b_proj.weight")
    rows, rank = shape
    heads, *key = keys.shape
    value = values.shape[1:]
    if (
        not (len(key) == len(value) == 2 and values.shape[0] == heads and (key[0], value[1]) == (rank, rank))
        or heads * (key[1] + value[0]) != rows
    ):
        refuse(
            keys.file,
            f"its matrices of keys are {list(keys.shape)}, those of values {list(values.shape)}: together "
            f"they are no {list(shape)}",
        )
    if keys.dtype not in FORMATS or values.dtype not in FORMATS:
        refuse(keys.file, f"{before}k_b_proj.weight is {keys.dtype}, which is not supported")
    parts = reshaped(keys, heads * rank, key[1]), reshaped(values, heads * value[0], rank)
    return Parts("F32", "latent_heads", parts)


LATENT_HEADS = Scheme("", _find)
