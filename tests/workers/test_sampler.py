"""Which token is chosen, and what that depends on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ipc.worker_messages import SamplingParams
from workers.sampling.logprobs import largest, logprobs, measured, named, nth_equal
from workers.sampling.sampler import CANDIDATES, Sampler
from workers.sampling.uniform import uniform

LOOKS = pytest.mark.parametrize("looks", [True, False])
VOCABULARY = 40
DRAWS = 12_000
SPREAD = torch.linspace(3, -4, VOCABULARY)[torch.randperm(VOCABULARY, generator=torch.manual_seed(0))]


def choose(
    rows: list[list[float]] | torch.Tensor,
    params: list[SamplingParams],
    prompts: list[list[int]] | None = None,
    outputs: list[list[int]] | None = None,
    bitmask: torch.Tensor | None = None,
    looks: bool = True,
) -> list[int]:
    """One token for each row, by a new sampler; without `looks` as on a GPU."""
    logits = torch.as_tensor(rows, dtype=torch.float32).clone()
    sampler = Sampler(logits.shape[1])
    sampler.looks = looks
    for slot, each in enumerate(params):
        prompt = prompts[slot] if prompts else [0] * slot
        sampler.add(slot, each, prompt, outputs[slot] if outputs else [])
    return sampler.sample(logits, list(range(len(params))), bitmask).tokens


def probabilities(
    logits: torch.Tensor, prompt: list[int], output: list[int], p: SamplingParams
) -> np.ndarray:
    """The definition in float64, one step after the other."""
    x = logits.double().numpy().copy()
    for token in {*prompt, *output}:
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(output):
        x[token] -= p.presence_penalty + p.frequency_penalty * output.count(token)
    for token, bias in p.logit_bias.items():
        x[token] += bias
    if p.allowed_token_ids:
        x[[i for i in range(len(x)) if i not in p.allowed_token_ids]] = -np.inf
    for word in p.bad_words:
        if len(word) == 1 or output[1 - len(word) :] == word[:-1]:
            x[word[-1]] = -np.inf
    if len(output) < p.min_tokens:
        x[p.stop_ids] = -np.inf
    order = np.lexsort((np.arange(len(x)), -x))  # of equals the lower id comes first
    weights = np.exp((x[order] - x.max()) / p.temperature)
    if p.top_k:
        weights[p.top_k :] = 0
    if p.top_p < 1:
        before = np.cumsum(weights) - weights
        weights[before >= p.top_p * weights.sum()] = 0
    weights[weights < p.min_p] = 0
    result = np.zeros(len(x))
    result[order] = weights / weights.sum()
    return result


FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.07},
    "top_k and top_p": {"top_k": 12, "top_p": 0.9, "temperature": 1.7},
    "repetition": {"repetition_penalty": 1.4},
    "presence": {"presence_penalty": 1.1},
    "frequency": {"frequency_penalty": 0.6},
    "bias": {"logit_bias": {3: 2.0, 9: -100.0}},
    "allowed": {"allowed_token_ids": [1, 2, 3, 5, 8, 13, 21, 34]},
    "bad words": {"bad_words": [[4], [6, 5, 7], [5, 6, 8]]},
    "min tokens": {"min_tokens": 9, "stop_ids": [0, 17]},
    "everything": {
        "temperature": 1.3,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "logit_bias": {3: 2.0},
        "bad_words": [[5, 6, 8]],
    },
}


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_are_drawn_as_often_as_the_float64_reference_says(name):
    prompt, output = [2, 11, 11], [5, 30, 5, 6]
    sampler, size = Sampler(VOCABULARY), 1000
    counts = np.zeros(VOCABULARY)
    params = SamplingParams(**FILTERS[name])
    for start in range(0, DRAWS, size):
        for slot in range(size):
            values = FILTERS[name] | {"seed": start + slot}
            sampler.add(slot, SamplingParams(**values), prompt, output)
        tokens = sampler.sample(SPREAD.repeat(size, 1), list(range(size))).tokens
        counts += np.bincount(tokens, minlength=VOCABULARY)
        for slot in range(size):
            sampler.remove(slot)
    expected = DRAWS * probabilities(SPREAD, prompt, output, params)
    assert not counts[expected == 0].any()
    possible = expected > 0
    freedom = int(possible.sum()) - 1
    chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


values = st.sampled_from([-8.0, -1.0, 0.0, 0.5, 1.9, 4.0])  # few, so that many are equal
some_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 10_000]),
    top_p=st.sampled_from([0.0123, 0.5071, 0.9173, 1.0]),
    min_p=st.sampled_from([0.0, 0.0313, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.9]),
    logit_bias=st.sampled_from([{}, {2: 1.5}]),
    seed=st.integers(0, 2**64 - 1),
)
row = st.tuples(st.lists(values, min_size=9, max_size=9), some_params, st.lists(st.integers(0, 8)))


@given(st.lists(row, min_size=1, max_size=6), st.randoms(), st.booleans())
@settings(max_examples=150)
def test_a_token_depends_neither_on_what_shares_the_batch_nor_on_looks(rows, random, looks):
    alone = [choose([logits], [params], [[1]], [output])[0] for logits, params, output in rows]
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    logits, params, outputs = zip(*(rows[i] for i in shuffled), strict=True)
    together = choose(list(logits), list(params), [[1]] * len(rows), list(outputs), looks=looks)
    assert together == [alone[i] for i in shuffled]


@given(st.lists(values, min_size=9, max_size=9))
def test_the_greedy_token_is_the_first_of_the_highest(logits):
    assert choose([logits], [SamplingParams(0.0)]) == [logits.index(max(logits))]


def test_the_first_of_the_highest_may_be_far_from_the_others():
    rows = torch.zeros(2, 1024)
    rows[0, [300, 301, 700]] = 5.0
    assert choose(rows, [SamplingParams(0.0)] * 2) == [300, 0]


@pytest.mark.parametrize("vocabulary", [300 * 128, 2003])  # in chunks, and a prime
def test_the_largest_are_those_of_a_sort(vocabulary):
    logits = torch.randn(9, vocabulary, generator=torch.manual_seed(2)).bfloat16().float()
    logits[0] = 0.0
    for count in (1, 20, 64, 1024):
        top, ids = largest(logits, count)
        assert torch.equal(top, logits.sort(descending=True).values[:, :count])
        assert torch.equal(top, logits.gather(1, ids))
        assert all(len(set(row_)) == count for row_ in ids.tolist())


def test_nothing_behind_the_vocabulary_is_found_where_its_last_tokens_are_impossible():
    logits = torch.full((2, 12_801), -torch.inf)
    logits[0, :3] = 1.0
    values, ids = largest(logits, 20)
    assert ids.max() < 12_801
    assert torch.equal(values, logits.gather(1, ids))
    assert nth_equal(logits, torch.tensor([[1.0], [2.0]]), torch.arange(5)[None]).max() < 12_801


@pytest.mark.parametrize("vocabulary", [40 * 128, 2003])
def test_an_unfiltered_token_is_where_its_point_lies_among_the_sums(vocabulary):
    logits = 2 * torch.randn(300, vocabulary, generator=torch.manual_seed(3))
    logits[:, 250:1000] = -torch.inf
    logits[7] = -torch.inf
    logits[7, 5] = 0.0
    sums = (logits / 0.8).softmax(-1).double().cumsum(-1).numpy()
    points = [uniform(seed, 1) * row_[-1] for seed, row_ in enumerate(sums)]
    expected = [int(np.searchsorted(row_, x, side="right")) for row_, x in zip(sums, points, strict=True)]
    params = [SamplingParams(0.8, seed=seed) for seed in range(300)]
    assert choose(logits, params, [[0]] * 300) == expected


@LOOKS
def test_rows_that_need_unlike_numbers_of_candidates_do_not_disturb_each_other(looks):
    spreads = torch.tensor([0.0, 0.3, 1.0, 3.0, 9.0]).repeat(8).unsqueeze(1)
    logits = (spreads * torch.randn(40, 300 * 128, generator=torch.manual_seed(4))).bfloat16().float()
    several = ({"top_p": 0.9}, {"min_p": 0.01}, {"top_k": 20, "top_p": 0.95}, {"top_k": 2 * CANDIDATES}, {})
    params = [SamplingParams(seed=seed, **several[seed // 5 % 5]) for seed in range(40)]
    together = choose(logits, params, [[0]] * 40, looks=looks)
    alone = [choose(logits[i : i + 1], params[i : i + 1], [[0]])[0] for i in range(40)]
    assert together == alone


@LOOKS
@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.9}])
def test_of_equal_logits_the_lower_token_ids_stay(settings, looks):
    rows = torch.zeros(500, 10)
    params = [SamplingParams(seed=seed, **settings) for seed in range(500)]
    drawn = set(choose(rows, params, [[0]] * 500, looks=looks))
    assert drawn == {"top_k": {0, 1, 2}, "top_p": {0, 1, 2, 3}, "min_p": set(range(10))}[next(iter(settings))]


@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_filters_are_right_where_the_candidates_do_not_suffice(spread):
    logits = torch.randn(5 * CANDIDATES, generator=torch.manual_seed(1)) * spread
    for settings_ in ({"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 2 * CANDIDATES, "top_p": 0.99}):
        allowed = probabilities(logits, [], [], SamplingParams(**settings_)) > 0
        params = [SamplingParams(seed=seed, **settings_) for seed in range(100)]
        assert all(allowed[token] for token in choose(logits.repeat(100, 1), params))


@pytest.mark.parametrize(
    ("settings", "warper"),
    [
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
        ({"repetition_penalty": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
    ],
)
def test_the_reference_is_what_transformers_does(settings, warper):
    ids = torch.tensor([[2, 11, 5]])
    expected = warper(ids, SPREAD[None].clone()).softmax(-1)[0].double().numpy()
    mine = probabilities(SPREAD, [2, 11, 5], [], SamplingParams(**settings))
    assert mine == pytest.approx(expected, abs=1e-6)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened():
    settings_ = FILTERS["everything"] | {"seed": 4, "bad_words": [[3, 3]], "min_tokens": 6, "stop_ids": [0]}
    params = SamplingParams(**settings_)
    whole = Sampler(VOCABULARY)
    whole.add(0, params, [2, 3])
    output: list[int] = []
    for _ in range(20):
        parted = Sampler(VOCABULARY)
        parted.add(7, params, [2, 3], list(output))
        [token] = whole.sample(SPREAD.clone()[None], [0]).tokens
        assert parted.sample(SPREAD.clone()[None], [7]).tokens == [token]
        output.append(token)


def bits(allowed: list[list[int]], vocabulary: int) -> torch.Tensor:
    """A grammar's mask."""
    words = np.zeros((len(allowed), -(-vocabulary // 32)), dtype=np.uint32)
    for row_, tokens in enumerate(allowed):
        for token in tokens:
            words[row_, token // 32] |= np.uint32(1) << np.uint32(token % 32)
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_s_mask_holds_the_last_bit_included(temperature):
    allowed = [[31], [32], [39], [0, 31]]
    params = [SamplingParams(temperature, seed=3)] * 4
    tokens = choose(SPREAD.repeat(4, 1), params, bitmask=bits(allowed, VOCABULARY))
    assert all(token in row_ for token, row_ in zip(tokens, allowed, strict=True))


def test_a_minimum_of_tokens_yields_to_a_grammar_that_is_at_its_end():
    params = [SamplingParams(0.0, min_tokens=5, stop_ids=[31, 7])] * 2
    mask = bits([[31], [31, 9]], VOCABULARY)
    assert choose(SPREAD.repeat(2, 1), params, bitmask=mask) == [31, 9]


@pytest.mark.parametrize("written", range(4))
def test_an_answer_may_end_as_soon_as_it_has_its_minimum_and_no_sooner(written):
    row, params = SPREAD.clone(), SamplingParams(0.0, min_tokens=2, stop_ids=[5])
    row[5] = 9.0
    [token] = choose(row[None], [params], [[1]], [[7] * written])
    assert (token == 5) == (written >= 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}])
def test_where_nothing_can_be_chosen_there_is_no_token_and_others_have_theirs(temperature, settings):
    rows = SPREAD.repeat(5, 1)
    rows[1] = -torch.inf
    rows[2, 5] = torch.nan
    rows[3, 5] = torch.inf
    params = [SamplingParams(temperature, seed=1, **settings)] * 5
    tokens = choose(rows, params, [[0]] * 5, bitmask=bits([range(VOCABULARY)] * 4 + [[]], VOCABULARY))
    assert tokens[0] >= 0
    assert tokens[1:] == [-1] * 4
    assert tokens[0] == choose(SPREAD[None], params[:1], [[0]])[0]


@LOOKS
@pytest.mark.parametrize("changed", ["bias", "grammar", "penalty", "a grammar of another"])
def test_logprobs_are_the_model_s_own_whatever_was_changed(looks, changed):
    sampler = Sampler(VOCABULARY)
    sampler.looks = looks
    others = [token for token in range(VOCABULARY) if token != 5]
    settings = {
        "bias": {"logit_bias": {5: 100.0}},
        "penalty": {"presence_penalty": 100.0},
        "a grammar of another": {"allowed_token_ids": [5]},
    }
    sampler.add(0, SamplingParams(0.0, logprobs=3, **settings.get(changed, {})), [1], others)
    sampler.add(1, SamplingParams(0.0), [1])
    allowed = {"grammar": [[5], others], "a grammar of another": [range(VOCABULARY), others]}.get(changed)
    mask = None if allowed is None else bits(allowed, VOCABULARY)
    sampled = sampler.sample(SPREAD.repeat(2, 1), [0, 1], mask)
    expected = SPREAD.double().log_softmax(-1)
    assert list(sampled.logprobs) == [0]
    told = sampled.logprobs[0]
    assert (told.token, sampled.tokens[0]) == (5, 5)
    assert told.logprob == pytest.approx(float(expected[5]), abs=1e-5)
    assert told.rank == int((expected > expected[5]).sum()) + 1
    best = expected.sort(descending=True)
    assert [token for token, _ in told.top] == best.indices[:3].tolist()
    assert [logprob for _, logprob in told.top] == pytest.approx(best.values[:3].tolist(), abs=1e-5)


def test_another_seed_or_another_place_draws_something_else():
    rows = torch.zeros(300, 1000)
    seeds = choose(rows, [SamplingParams(seed=seed) for seed in range(300)], [[0]] * 300)
    places = choose(rows, [SamplingParams(seed=1)] * 300, [[0] * place for place in range(1, 301)])
    assert len(set(seeds)) > 200
    assert len(set(places)) > 200


@LOOKS
@pytest.mark.parametrize("vocabulary", [40, 4096])
def test_of_equally_probable_alternatives_those_with_the_lowest_numbers_are_named(vocabulary, looks):
    logits = torch.zeros(3, vocabulary)
    logits[1, vocabulary - 1] = 3.0
    logits[2, :7] = torch.arange(7).float()
    found = measured(logits, torch.tensor([7, 7, 7]), 4, looks).tolist()
    named_ = [named(row_, 7, count) for row_, count in zip(found, [4, 2, 0], strict=True)]
    assert [[token for token, _ in each.top] for each in named_] == [[0, 1, 2, 3], [vocabulary - 1, 0], []]
    assert [each.rank for each in named_] == [1, 2, 7]
    assert logprobs(logits, [7, 7, 7], [4, 2, 0]) == named_


def test_where_all_tokens_are_asked_for_all_are_named():
    [told] = logprobs(torch.tensor([[1.0, 3.0, 1.0]]), [0], [5])
    assert [token for token, _ in told.top] == [1, 0, 2]
    assert (told.token, told.rank) == (0, 2)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=300))
def test_the_nth_of_equal_elements_is_found(row_):
    x = torch.tensor([row_])
    for value in range(3):
        places = [place for place, each in enumerate(row_) if each == value]
        found = nth_equal(x, torch.tensor([[value]]), torch.arange(len(places))[None])
        assert found.tolist() == [places]
