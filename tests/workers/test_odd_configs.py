"""No value of any key of any `config.json` is more than a refusal, and what is accepted can be made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ipc.errors import Code, CortexError
from tests.neuron.folders import write_checkpoint
from tests.workers.cards import refusal
from tests.workers.checkpoints import VARIANTS
from tests.workers.tiny_models import LLAMA3, YARN, cwm, llama
from workers.checkpoints import registry, rope
from workers.checkpoints.config import ModelConfig
from workers.models.registry import MODELS
from workers.parallel import RankGroup

NAMES = [
    next(each for each in VARIANTS if each == name or each.startswith(f"{name}_"))
    for name in registry.FAMILIES
    if name not in ("bert", "roberta", "modernbert", "nomic_bert", "gte", "eurobert")
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
    whole = model.config.get_text_config().to_dict() | {"architectures": [type(model).__name__]}
    assert read(tmp_path / "config.json", whole) is not None
    ways = [way for way in places(whole) if way != ("architectures",)]
    found = [read(tmp_path / "config.json", changed(whole, way, value)) for way in ways for value in ODD]
    assert 100 < sum(each is None for each in found) < len(found)


@pytest.mark.parametrize("turning", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_an_original_context_that_cannot_be_meant_is_refused(tmp_path, turning):
    for length in (0, -1, 1 << 70):
        given = llama(rope_parameters=turning).config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
        given["rope_parameters"]["original_max_position_embeddings"] = length
        assert read(tmp_path / "config.json", given) is None


def test_a_rope_that_says_no_base_has_that_of_its_family(tmp_path):
    given = cwm().config.to_dict() | {"architectures": ["CwmForCausalLM"]}
    base = given["rope_parameters"].pop("rope_theta")
    config = read(tmp_path / "config.json", given)
    assert config.rope.rope_theta == base == 1_000_000.0
    MODELS["cwm"](config, RankGroup(), torch.float32)


SCALED = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("parameters", "is_same"),
    [
        ({"rope_theta": 10_000.0}, False),
        ({"rope_theta": 10_000.0, "rope_type": "default"}, False),
        (YARN | {"factor": 8.0}, False),
        (YARN | {"beta_fast": 16.0}, False),
        (YARN, True),
        ({"full_attention": YARN, "sliding_attention": {"rope_theta": 5.0}}, True),
        ({"full_attention": {"rope_type": "default"}}, False),
        ({}, True),
        (None, True),
    ],
)
def test_a_rope_scaling_beside_other_parameters_is_never_left_out_in_silence(tmp_path, parameters, is_same):
    given = {"rope_parameters": parameters, "rope_scaling": SCALED}
    if is_same:
        assert rope.said_once(tmp_path, given).get("rope_scaling") == (None if parameters else SCALED)
    else:
        with pytest.raises(CortexError, match="leave one of them out"):
            rope.said_once(tmp_path, given)


def test_a_yarn_that_somebody_adds_to_a_file_of_today_is_refused_and_not_ignored(tmp_path):
    path = write_checkpoint(tmp_path) / "config.json"
    given = json.loads(path.read_text()) | {"rope_parameters": {"rope_theta": 10_000.0}}
    path.write_text(json.dumps(given))
    assert refusal(tmp_path) is None
    path.write_text(json.dumps(given | {"rope_scaling": SCALED}))
    assert "rope_scaling says something else than rope_parameters" in refusal(tmp_path)
