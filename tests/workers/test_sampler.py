"""Which token is drawn, and what it depends on."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.sampler import CANDIDATES, Draw, sample, uniform

draws = st.builds(
    Draw,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 10_000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 100_000),
)
values = st.sampled_from([-8.0, -1.0, 0.0, 0.5, 0.5, 2.0, 4.0])  # few, so that many are equal


def plain(logits: list[float], draw: Draw) -> int:
    """The definition, one step after the other."""
    if draw.temperature == 0:
        return logits.index(max(logits))
    scaled = [logit / draw.temperature for logit in logits]
    ranked = sorted(scaled, reverse=True)
    kept = [value for value in scaled if not draw.top_k or value >= ranked[: draw.top_k][-1]]
    total = sum(map(math.exp, kept))
    lowest, mass = -math.inf, 0.0
    if draw.top_p < 1:
        for lowest in sorted(kept, reverse=True):
            mass += math.exp(lowest) / total
            if mass >= draw.top_p - 1e-6:
                break
    lowest = max(lowest, min(kept))
    sums = [*accumulate(math.exp(value) if value >= lowest - 1e-6 else 0.0 for value in scaled)]
    return bisect_right(sums, uniform(draw.seed, draw.position) * sums[-1])


@given(st.lists(st.lists(values, min_size=9, max_size=9), min_size=1, max_size=5), st.data())
@settings(max_examples=150, deadline=None)
def test_every_row_is_drawn_by_the_definition_whatever_its_neighbours_are(rows, data):
    chosen = [data.draw(draws) for _ in rows]
    expected = [plain(row, draw) for row, draw in zip(rows, chosen, strict=True)]
    assert sample(torch.tensor(rows), chosen) == expected


@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_top_p_over_a_large_vocabulary_keeps_the_fewest_that_have_the_mass(spread):
    torch.manual_seed(1)
    logits = torch.randn(1, 5 * CANDIDATES) * spread
    ranked = logits[0].softmax(-1).sort(descending=True).values.double().cumsum(-1)
    kept = int((ranked < 0.9).sum()) + 1
    lowest = logits[0].sort(descending=True).values[kept - 1]
    for seed in range(200):
        [token] = sample(logits, [Draw(1.0, 0, 0.9, seed, 1)])
        assert logits[0, token] >= lowest


def test_tokens_are_drawn_as_often_as_they_are_probable():
    probabilities = [0.5, 0.25, 0.15, 0.1]
    logits = torch.tensor(probabilities).log().expand(4000, 4)
    tokens = sample(logits, [Draw(1.0, 0, 1.0, 42, position) for position in range(4000)])
    counts = Counter(tokens)
    for token, probability in enumerate(probabilities):
        assert abs(counts[token] - 4000 * probability) < 4 * math.sqrt(4000 * probability)


def test_logits_of_minus_infinity_are_never_drawn():
    logits = torch.full((500, 7), -math.inf)
    logits[:, 3] = 0.0
    assert set(sample(logits, [Draw(1.0, 0, 1.0, seed, 0) for seed in range(500)])) == {3}


def test_an_empty_step_samples_nothing():
    assert sample(torch.empty(0, 5), []) == []


def test_the_generator_gives_the_same_numbers_for_ever():
    """Answers with a seed shall not change with a release."""
    assert [round(uniform(0, position), 12) for position in range(3)] == [
        0.281761297723,
        0.652448486374,
        0.701212109522,
    ]
    assert uniform(2**64 - 1, 2**40) != uniform(2**64 - 2, 2**40)


def test_the_generator_is_even_over_seeds_and_over_positions():
    for numbers in (
        [uniform(seed, 5) for seed in range(10_000)],
        [uniform(5, position) for position in range(10_000)],
    ):
        assert all(0 <= number < 1 for number in numbers)
        tenths = Counter(int(10 * number) for number in numbers)
        assert all(abs(tenths[tenth] - 1000) < 120 for tenth in range(10))
