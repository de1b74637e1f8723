"""No value of any key of any `config.json` is more than a refusal, and what is accepted can be made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ipc.errors import Code, CortexError
from tests.workers.checkpoints import LLAMA3, VARIANTS, YARN, cwm, llama
from workers.checkpoints import registry
from workers.checkpoints.config import ModelConfig
from workers.models.registry import MODELS
from workers.parallel import RankGroup

NAMES = [
    next(each for each in VARIANTS if each == name or each.startswith(f"{name}_"))
    for name in registry.FAMILIES
    if name not in ("bert", "roberta", "modernbert", "nomic_bert")
]
ODD = (None, -1, 0, 1, 1.5, 1e308, 1 << 31, 1 << 70, True, "x", [], [None], [[1]], {}, {"x": 1}, ...)


def places(values: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Where something stands, in objects within it, too."""
    for key, value in values.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *way) for way in places(value))


def changed(values: dict[str, Any], way: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The same with `value` there; `...`: with nothing."""
    first, *rest = way
    if rest:
        value = changed(values[first], tuple(rest), value)
    return {key: each for key, each in (values | {first: value}).items() if each is not ...}


def read(path: Path, given: dict[str, Any]) -> ModelConfig | None:
    """What it says; None: it is refused, naming the file."""
    [architecture] = given["architectures"]
    try:
        return registry.ARCHITECTURES[architecture].read(path, given)
    except CortexError as error:
        said = error
    assert said.code == Code.MODEL_LOAD_FAILED
    assert str(path) in said.message
    return None


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_any_key_is_more_than_a_refusal(tmp_path, name):
    model = VARIANTS[name]()
    whole = model.config.to_dict() | {"architectures": [type(model).__name__]}
    assert read(tmp_path / "config.json", whole) is not None
    ways = [way for way in places(whole) if way != ("architectures",)]
    found = [read(tmp_path / "config.json", changed(whole, way, value)) for way in ways for value in ODD]
    assert 100 < sum(each is None for each in found) < len(found)


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_an_original_context_that_cannot_be_meant_is_refused(tmp_path, rope):
    for length in (0, -1, 1 << 70):
        given = llama(rope_parameters=rope).config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
        given["rope_parameters"]["original_max_position_embeddings"] = length
        assert read(tmp_path / "config.json", given) is None


def test_a_rope_that_says_no_base_has_that_of_its_family(tmp_path):
    given = cwm().config.to_dict() | {"architectures": ["CwmForCausalLM"]}
    base = given["rope_parameters"].pop("rope_theta")
    config = read(tmp_path / "config.json", given)
    assert config.rope.rope_theta == base == 1_000_000.0
    MODELS["cwm"](config, RankGroup(), torch.float32)
