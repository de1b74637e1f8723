"""Which scheme a checkpoint is quantised in, as its `config.json` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

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
MLX = "MLX"  # which names no method
OTHERS = {"quantization": MLX, "quip_params": "QuIP#"}  # keys of those that have their own


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
        if method is None and {"group_size", "bits"} <= says.keys():
            method = MLX
        if not isinstance(method, str) or method not in SCHEMES:
            _refuse(path, key, method)
        return SCHEMES[method](path, says)
    for key, method in OTHERS.items():
        if given.get(key):
            _refuse(path, key, method)
    says = fp4.beside(path.parent)
    if says.get("quant_algo") is None:
        return None
    return fp4.read_modelopt(path.with_name(fp4.BESIDE), says, fp4.WITHIN)


def _refuse(path: Path, key: str, method: object) -> NoReturn:
    what = f"the weights are quantised ({method or 'unknown'}), which is not supported"
    refuse(path, f"{key}: {what}; there are {', '.join(SCHEMES)}")
