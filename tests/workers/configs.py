"""A `config.json` with changes, as its family reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipc.errors import Code, CortexError
from tests.workers.tiny_models import SIZES
from workers.checkpoints import registry
from workers.checkpoints.model_config import ModelConfig


def written(folder: Path, **changes: Any) -> ModelConfig:
    values = SIZES | {"architectures": ["LlamaForCausalLM"]} | changes
    content = {key: value for key, value in values.items() if value is not ...}
    _, family = registry.find(content["architectures"])
    return family.read(folder / "config.json", content)


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(CortexError) as caught:
        written(folder, **changes)
    assert caught.value.code == Code.MODEL_LOAD_FAILED
    assert str(folder / "config.json") in caught.value.message
    return caught.value.message
