"""Which scheme a checkpoint is quantised in, as its `config.json` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation import awq, bitsandbytes, compressed, fp4, fp8, gptq
from workers.checkpoints.quantisation.scheme import Scheme

SCHEMES: dict[str, Callable[[Path, Mapping[str, Any]], Scheme]] = {
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": compressed.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "modelopt": fp4.read_modelopt,
    "modelopt_fp4": fp4.read_modelopt,
    "mxfp4": fp4.read_mxfp4,
}
KEYS = ("quantization_config", "compression_config")


def read(path: Path, given: Mapping[str, Any]) -> Scheme | None:
    """The scheme that `config.json` names, or ModelOpt's file beside it; None where neither does.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the key that is not supported.
    """
    for key in KEYS:
        says = given.get(key)
        if says is None or says == {}:
            continue
        if not isinstance(says, dict):
            refuse(path, f"{key} is no object")
        method = says.get("quant_method")
        if not isinstance(method, str) or method not in SCHEMES:
            refuse(
                path,
                f"{key}: the weights are quantised ({method or 'unknown'}), which is not supported; "
                f"there are {', '.join(SCHEMES)}",
            )
        return SCHEMES[method](path, says)
    says = fp4.beside(path.parent)
    if says.get("quant_algo") is None:
        return None
    return fp4.read_modelopt(path.with_name(fp4.BESIDE), says, fp4.WITHIN)
