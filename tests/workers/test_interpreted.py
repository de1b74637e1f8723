"""What Triton's kernels compute, as its interpreter has them, is what torch computes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.workers.interpreted import Interpreted
from tests.workers.interpreted_products import KINDS
from tests.workers.interpreted_steps import PROMPTS
from tests.workers.oracle import greedy
from workers.checkpoints.blocks import FORMATS
from workers.weights import planes

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="torch for the CPU has no Triton")
KINDS_IN_PLANES = [*planes.BLOCKS, *planes.ROWS]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreted]:
    with Interpreted() as process:
        yield process


def test_attention(interpreted):
    interpreted("attention", "attention")


def test_codes_of_keys_and_values(interpreted):
    interpreted("attention", "codes")


def test_what_is_between_products(interpreted):
    interpreted("steps", "all_between_products")


@pytest.mark.parametrize("name", ["gemma3", "llama4", "deepseek_v2_in_groups", "deepseek_v3", "qwen2_moe"])
def test_models_answer_as_transformers_does(interpreted, tiny, name):
    folder, oracle = tiny(name)
    for prompt, answer in zip(PROMPTS, interpreted("steps", "answers", str(folder)), strict=True):
        assert len(answer) == 2
        assert answer == greedy(oracle, prompt, answer)


def test_products_with_weights_in_blocks(interpreted):
    errors = interpreted("products", "errors")
    assert {name.split()[0] for name in errors} == set(KINDS)
    assert len(errors) == 4 * len(KINDS)
    for name, error in errors.items():
        assert error < (1e-5 if "float32" in name else 1e-3), name


def test_products_of_experts(interpreted):
    errors = interpreted("experts", "errors")
    assert len(errors) == 2 * 5 + 6 * 2  # formats and types, ways to choose
    for name, error in errors.items():
        assert error < (1e-5 if "float32" in name else 1e-3), name


def test_products_with_weights_in_planes(interpreted):
    from workers.kernels import skinny

    errors = interpreted("planes", "errors", KINDS_IN_PLANES)
    assert {name.split()[0] for name in errors} == set(KINDS_IN_PLANES)
    assert len(errors) == 2 * len(KINDS_IN_PLANES) + sum(map(bool, map(skinny.alone, KINDS_IN_PLANES))) + 4
    for name, error in errors.items():
        assert error < 1e-3, name


def test_a_last_step_that_is_filled_sees_no_other_token(interpreted):
    from workers.kernels import skinny

    kinds = [kind for kind in KINDS_IN_PLANES if FORMATS[kind].elements <= 64]
    errors = interpreted("planes", "errors_of_filled_steps", [*kinds, "PLAIN"])
    assert len(errors) == 2 * len(kinds) + sum(map(bool, map(skinny.alone, kinds))) + 8
    for name, error in errors.items():
        assert error < 1e-3, name


def test_a_program_asks_for_all_that_its_first_step_takes_and_for_nothing_that_is_not_the_weight_s(
    interpreted,
):
    assert interpreted("planes", "steps_without_what_is_asked_for", KINDS_IN_PLANES) == []


def test_products_of_experts_in_planes(interpreted):
    errors = interpreted("planes", "errors_of_experts")
    assert len(errors) == 4 * 2
    assert max(errors.values()) < 1e-3, errors


def test_gates_open_where_a_product_ends_what_they_open_behind_it(interpreted):
    errors = interpreted("planes", "opened")
    assert len(errors) == 3 * 2 * (5 + 2)
    assert max(errors) < 1e-5


def test_states(interpreted):
    for errors in interpreted("states", "errors"):
        assert max(errors) < 3e-5


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_5"])
def test_steps_with_states_are_recorded(interpreted, tiny, name):
    expected, found, captured, replayed = interpreted("states", "replayed", str(tiny(name).folder))
    assert found == expected
    assert len({token for answer in found for token in answer}) > 5
    assert replayed > 2 * captured > 2
