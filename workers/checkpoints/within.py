"""The language model within one that sees as well: its part of `config.json`, and of the tensors.

What sees is not served; what is asked of such a model is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from workers.checkpoints.files import refuse

T = TypeVar("T")

TEXT = "text_config"
SHARED = ("tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id")  # may stand outside
OF_SIGHT = ("vision_", "image_", "video_")  # what keys begin with that say nothing of the language model
# Prefixes of its tensors, before transformers 5 and since, and what the same are called of the model alone.
PREFIXES = {"language_model.": "", "model.language_model.": "model."}
NOTE = "of a model that sees, the language model alone is served: it takes text"


def config(path: Path, given: Mapping[str, Any], model_types: tuple[str, ...]) -> dict[str, Any]:
    """Its `config.json`, as if it stood alone.

    Args:
        model_types: of which it must be one; the first, where it does not say.

    Raises:
        CortexError: it is another, or none.
    """
    inner = given.get(TEXT)
    if inner is None and given.get("model_type") in model_types:  # one object for both, as some began
        inner = given
    if not isinstance(inner, dict):
        refuse(path, f"{TEXT} is missing: the config of the language model")
    inner = {key: value for key, value in inner.items() if not key.startswith(OF_SIGHT)}
    if (found := inner.get("model_type", model_types[0])) not in model_types:
        refuse(path, f"{TEXT}.model_type {found} is not supported; there are {', '.join(model_types)}")
    return {key: given[key] for key in SHARED if given.get(key) is not None} | inner | {"architectures": []}


def tensors(stored: Mapping[str, T]) -> dict[str, T]:
    """Its tensors under their usual names, and all others under theirs."""
    return {usual(name): tensor for name, tensor in stored.items()}


def usual(name: str) -> str:
    """What a tensor, or a module, of that name is called of the language model alone."""
    for prefix, alone in PREFIXES.items():
        if name.startswith(prefix):
            return alone + name.removeprefix(prefix)
    return name
