"""Tokens that were guessed, and checked several in a step, change no answer."""

from __future__ import annotations

import random
from array import array

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.errors import CortexError
from ipc.model_settings import ModelSettings
from ipc.worker_messages import FREE_ROWS, MemoryUse, SamplingParams, Submit
from neuron.description import described
from tests.workers import encoders
from tests.workers.engines import Answer, Session, make_runner, make_spec, prompt_of, request
from tests.workers.equalities import VOCABULARY, assert_equal
from tests.workers.guessing import SIZES, Knows, answers_of, of_all_kinds, replace_id
from tests.workers.oracle import fill
from tests.workers.recorded import record_steps
from tests.workers.simulation import END, STORM_STEPS, Run, Shape, Storm, group, make_scheduler, submit
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import granite_hybrid, lfm2, qwen3, qwen3_5
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE
from workers.process.loop import make_scheduler as make_worker_scheduler
from workers.sampling.sampler import Sampler
from workers.scheduling import drafts
from workers.step.engine import Extra, Loaded, StepResult
from workers.step.plan import UNKNOWN, verified


def test_tokens_are_kept_up_to_the_first_that_was_guessed_otherwise():
    assert verified(iter([5, 6]), []) == [5]
    assert verified(iter([5, 6, 7, 8]), [5, 6]) == [5, 6, 7]
    coming = iter([5, 9, 1])
    assert verified(coming, [5, 6, 7]) == [5, 9]
    assert verified(coming, [2]) == [1]
    assert verified(iter([5, -1]), [5, 6]) == [5, -1]
    with pytest.raises(ValueError, match="too few"):
        verified(iter([5]), [5])


# --- the scheduler alone ------------------------------------------------------------------------------------


class Seer:
    """Knows what comes, the end too, and says something else now and then."""

    def __init__(self, sample) -> None:
        self._sample = sample

    def draft(self, token_ids, most):
        dice, text = random.Random(len(token_ids)), token_ids.tolist()
        found = []
        while len(found) < most:
            following = self._sample(text)
            [token] = following.tokens
            if following.extras or token < 0:
                break
            text.append(token)
            found.append(token if dice.random() < 0.85 else token + 1)
        return found


@pytest.fixture
def seer(monkeypatch):
    """Let guesses be as good as this `sample` makes them."""
    return lambda sample: monkeypatch.setitem(drafts.DRAFTERS, "ngram", lambda: Seer(sample))


def count(token_ids: list[int]) -> StepResult:
    """An answer that tells its place, and ends at 60 tokens."""
    return StepResult([END if len(token_ids) == 60 else 1_000 + len(token_ids)])


@pytest.mark.parametrize("in_flight", [0, 1])
def test_several_tokens_come_of_one_step(seer, in_flight):
    seer(count)
    run = Run(make_scheduler(speculation="ngram"), count, in_flight)
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert run.output[1] == [1_000 + n for n in range(5, 60)] + [END]
    assert run.finish == {1: "stop"}
    assert len([plan for plan in run.plans if plan]) < 25
    counts = run.scheduler.statistics()
    assert 56 - 25 < counts["accepted"] < counts["drafted"]


def test_guesses_stay_within_the_page_the_rows_and_the_length(seer):
    seer(count)
    run = Run(make_scheduler(speculation="ngram", max_step_tokens=24), count)
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, 3 + request_id, max_tokens=44))
    run.scheduler.submit(submit(3, 400, max_tokens=1))
    while plan := run.step():
        drafted = sum(len(entry.drafts) for entry in plan.scheduled)
        decoding = [entry for entry in plan.scheduled if entry.num_tokens == 1 + len(entry.drafts)]
        assert drafted + len(decoding) <= FREE_ROWS
        if run.scheduler._open.get(3):
            assert run.scheduler.prefill_tokens >= (24 - 3) // 2, "a prompt has half of what is left"
        for sequence in run.scheduler.decoding:
            assert sequence.capacity - sequence.num_computed < 32, "no page is held in advance"
    run.assert_nothing_is_held()
    assert all(len(run.output[request_id]) == 44 for request_id in range(3))
    assert run.scheduler.statistics()["accepted"] > 44


@pytest.mark.parametrize(("sequences", "ahead"), [(FREE_ROWS - 1, False), (FREE_ROWS, True)])
def test_no_step_waits_for_tokens_behind_which_there_is_no_row_for_a_guess(seer, sequences, ahead):
    seer(count)
    run = Run(make_scheduler(speculation="ngram", max_sequences=sequences, kv_pages=400), count, in_flight=1)
    for request_id in range(sequences):
        run.scheduler.submit(submit(request_id, 5))
    while len(run.scheduler.decoding) < sequences:
        run.step()
    while run.results:  # of which one may have guesses still
        run.observe()
    assert run.send() is not None
    assert (run.send() is not None) == ahead
    run.to_the_end().assert_nothing_is_held()


@pytest.mark.parametrize("kind", ["full", "state"])
def test_a_step_with_guesses_that_finds_no_memory_is_done_again_without_them(seer, monkeypatch, kind):
    """From the beginning where it may have left a state half done."""
    seer(count)
    caches = {"caches": [group("full"), group("state")], "states": 8} if kind == "state" else {}
    run, drafted = Run(make_scheduler(speculation="ngram", **caches), count), []
    execute = run.engine.execute

    def without_memory_for_guesses(plan, sample, fails=False):
        drafted.append(any(entry.drafts for entry in plan.scheduled))
        return execute(plan, sample, fails or drafted[-1])

    monkeypatch.setattr(run.engine, "execute", without_memory_for_guesses)
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert drafted.count(True) == 1
    assert run.output[1] == [1_000 + n for n in range(5, 60)] + [END]
    statistics = run.scheduler.statistics()
    assert (statistics["out_of_memory"], statistics["preemptions"]) == (1, int(kind == "state"))


def test_what_is_aborted_while_it_is_checked_is_told_to_nobody(seer):
    seer(count)
    run = Run(make_scheduler(speculation="ngram"), count, in_flight=1)
    run.scheduler.submit(submit(1, 5))
    run.scheduler.submit(submit(2, 6))
    while not run.step().scheduled[0].drafts:
        pass
    run.send()
    assert run.results
    run.recorded.abort(1)
    run.to_the_end().assert_nothing_is_held()
    assert run.output[2] == [1_000 + n for n in range(6, 60)] + [END]
    assert run.finish == {1: "aborted", 2: "stop"}


CACHES = {
    "full": (group("full"),),
    "windows": (group("full"), group("window", 33), group("window", 100)),
    "chunk": (group("full"), group("chunk", 64)),
    "state": (group("full"), group("state")),
}


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("kv_pages", [12, 60])
@pytest.mark.parametrize("caches", CACHES.values(), ids=CACHES)
def test_a_storm_with_guesses_leaks_nothing_and_gives_the_answers_of_one_without(
    seer, caches, kv_pages, in_flight
):
    shape = Shape(
        *(5, 64),
        context_length=300,
        kv_pages=kv_pages,
        caches=caches,
        states=8 * sum(each.kind == "state" for each in caches),
        speculation="ngram",
    )
    seer(lambda token_ids: storm.sample(token_ids))
    storm = Storm(shape, kv_pages, in_flight)
    storm.rage(STORM_STEPS // 3).calm()
    assert storm.run.scheduler.statistics()["accepted"] > STORM_STEPS // 20


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("caches", ["full", "state"])
def test_nor_does_one_whose_engine_makes_the_guesses_as_it_checks_them(caches, in_flight):
    """Which the scheduler does not know when it plans: neither that one ends its sequence."""
    groups = CACHES[caches]
    shape = Shape(
        *(5, 64, 300, 12, groups, 8 * sum(each.kind == "state" for each in groups)), speculation="mtp"
    )
    storm = Storm(shape, 7, in_flight)
    storm.run.engine.guesser = Seer(storm.sample)
    storm.rage(STORM_STEPS // 3).calm()
    assert storm.run.scheduler.statistics()["accepted"] > STORM_STEPS // 20


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_row_behind_a_draft_that_is_not_finite_leaves_its_sequence_without_a_token(broken):
    """Be the draft right or wrong; who stands beside it has its own."""
    logits = torch.zeros(6, 16)
    for row, token in enumerate((4, 5, 6, 7, 8, 9)):
        logits[row, token] = 1.0
    logits[broken] = float("nan")
    sampler = Sampler(16)
    sampler.add(0, SamplingParams(0.0, logprobs=1), [1])
    sampler.add(3, SamplingParams(0.0, logprobs=1), [2])
    sampled = sampler.launch(logits, [0, 0, 0, 0, 3, 3], drafts={0: [4, 9, 1], 3: [8]}).result()
    assert sampled.tokens == [-1, 8, 9]
    assert sampled.broken == {0}
    assert sorted(sampled.logprobs) == [1, 2]


def test_drafts_that_only_the_device_knows_count_up_to_the_first_that_is_wrong_or_an_end():
    """Behind a wrong one, an end is none."""
    logits = torch.zeros(8, 16)
    for row, token in enumerate((4, 5, 6, 7, 8, 9, 10, 11)):
        logits[row, token] = 1.0
    sampler = Sampler(16)
    for slot in (0, 3):
        sampler.add(slot, SamplingParams(0.0, stop_ids=[5], logprobs=slot), [1])
    drafts, made = {0: [UNKNOWN] * 3, 3: [UNKNOWN] * 3}, torch.tensor([4, 5, 6, 9, 5, 10])
    sampled = sampler.launch(logits, [0] * 4 + [3] * 4, drafts=drafts, made=made).result()
    assert sampled.tokens == [4, 5, 8]
    assert sampled.drafts == [4, UNKNOWN, 6, 9, UNKNOWN, 10]
    assert [[token for token, _ in each.top] for each in sampled.logprobs.values()] == [[], [], [8, 0, 1]]


def test_numbers_that_are_not_finite_without_a_draft_are_an_error_still(seer):
    """The drafts of a step without a token are forgotten, and then the error is the model's own."""

    def sample(token_ids: list[int]) -> StepResult:
        if len(token_ids) < 12:
            return count(token_ids)
        return StepResult([-1], {0: Extra("error", "internal", "not finite")})

    seer(sample)
    run = Run(make_scheduler(speculation="ngram"), sample)
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert run.output[1] == [1_000 + n for n in range(5, 12)]
    assert run.finish == {1: "error"}


# --- a model ------------------------------------------------------------------------------------------------


@pytest.fixture
def knowing(monkeypatch):
    def know(submits: list[Submit], answers: list[Answer]) -> None:
        told = {tuple(prompt_of(each)): it.token_ids for each, it in zip(submits, answers, strict=True)}
        assert len(told) == len(submits), "each prompt is another"
        monkeypatch.setitem(drafts.DRAFTERS, "ngram", lambda: Knows(told))

    return know


@pytest.fixture(scope="module", params=["cpu", "recorded"])
def runner(request, tiny):
    """On the CPU, and as on a GPU: with a step in flight, and steps that are recorded."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "recorded":
            record_steps(patch)
        runner = make_runner(tiny("qwen3_untied_biased").folder, **SIZES)
        runner.in_flight = int(request.param == "recorded")
        runner.load(lambda fraction, message: None)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def expected(runner) -> list[Answer]:
    """What is answered without guesses."""
    return answers_of(runner, of_all_kinds())[0]


@pytest.mark.parametrize(
    "limits",
    [{}, {"seed": 1}, {"max_step_tokens": 30, "seed": 2}, {"kv_pages": 9}],
    ids=["batched", "come and go", "chunked", "preempted"],
)
def test_answers_are_those_without_guesses(runner, expected, knowing, limits):
    knowing(of_all_kinds(), expected)
    found, counts = answers_of(runner, of_all_kinds(), speculation="ngram", **limits)
    assert_equal(found, expected)
    assert counts["accepted"] > 100
    assert counts["drafted"] > counts["accepted"]
    assert (counts["preemptions"] > 0) == ("kv_pages" in limits)


def test_so_are_those_to_prompts_that_are_cached(runner, expected, knowing):
    submits = of_all_kinds()
    knowing(submits, expected)
    session = Session(runner, **SIZES, max_sequences=16, speculation="ngram")
    session.answer(submits)
    later = [replace_id(each) for each in submits]
    found = session.answer(later)
    session.end()
    assert_equal(found, expected)
    assert sum(answer.cached_tokens > 0 for answer in found) > 5


def test_a_text_that_repeats_itself_takes_fewer_steps(runner):
    submits = [request(1, [9, 40, 77, 3, 15, 62], 66, allowed_token_ids=[7, 8])]
    [plain], _ = answers_of(runner, submits)
    [found], counts = answers_of(runner, submits, speculation="ngram")
    assert found == plain
    assert counts["accepted"] > 40


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss", "lfm2"])
def test_windows_experts_and_convolutions_are_no_matter(tiny, knowing, name):
    runner = make_runner(tiny(name).folder, **SIZES)
    runner.load(lambda fraction, message: None)
    expected, _ = answers_of(runner, of_all_kinds()[:5])
    knowing(of_all_kinds()[:5], expected)
    found, counts = answers_of(runner, of_all_kinds()[:5], speculation="ngram")
    assert_equal(found, expected)
    assert counts["accepted"] > 50
    runner.close()


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_next", "lfm2", "granitemoehybrid", "falcon_h1"])
def hybrid(request, tiny):
    """Layers that keep a state; and turns of conversations, with what is answered without guesses."""
    runner = make_runner(tiny(request.param).folder, host_states=24, **SIZES)
    runner.in_flight = int(request.param == "qwen3_next")
    runner.load(lambda fraction, message: None)
    first = of_all_kinds()[:5]
    answers, _ = answers_of(runner, first)
    second = [
        msgspec.structs.replace(
            replace_id(each), prompt=array("I", [*prompt_of(each), *it.token_ids, 9]).tobytes(), max_tokens=9
        )
        for each, it in zip(first, answers, strict=True)
    ]
    yield runner, (first, answers), (second, answers_of(runner, second)[0])
    runner.close()


@pytest.mark.parametrize(
    ("limits", "seed"),
    [
        ({}, None),
        ({"max_step_tokens": 30}, 2),
        ({"kv_pages": 9}, None),
        ({"states": 4, "host_states": 24}, 1),
    ],
    ids=["batched", "chunked", "preempted", "on the host"],
)
def test_what_is_guessed_wrong_gets_into_no_state(hybrid, knowing, limits, seed):
    """Not into those that the next turns begin with, either."""
    runner, first, second = hybrid
    knowing(*first)
    session = Session(runner, **{"max_sequences": 16} | SIZES | limits, speculation="ngram")
    assert_equal(session.answer(first[0], seed=seed), first[1])
    continued = session.answer(second[0], seed=seed)
    assert_equal(continued, second[1])
    session.end()
    counts = session.scheduler.statistics()
    assert 100 < counts["accepted"] < counts["drafted"]
    assert (counts["preemptions"] > 0) == ("kv_pages" in limits)
    assert "kv_pages" in limits or sum(it.cached_tokens >= 64 for it in continued) > 3


def test_a_step_with_guesses_that_fails_amid_its_layers_leaves_no_state_half_done(
    hybrid, knowing, monkeypatch
):
    runner, first, _ = hybrid
    knowing(*first)
    run, failed = runner.states.run, []

    def without_memory(prepared, layer, *given):
        if prepared.guesses is not None and layer == 1 and not failed:
            failed.append(layer)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run(prepared, layer, *given)

    monkeypatch.setattr(runner.states, "run", without_memory)
    found, counts = answers_of(runner, first[0], speculation="ngram")
    assert_equal(found, first[1])
    assert (failed, counts["out_of_memory"]) == ([1], 1)


@pytest.mark.parametrize("name", ["qwen3_untied_biased", "qwen3_5"])
def test_all_ranks_keep_the_same_tokens(tiny, knowing, monkeypatch, name):
    ranks = Ranks(tiny(name).folder, 2, monkeypatch, **SIZES)
    submits = of_all_kinds()[:4]
    expected, _ = answers_of(ranks, submits)
    knowing(submits, expected)
    found, counts = answers_of(ranks, submits, speculation="ngram", seed=5)
    assert_equal(found, expected)
    assert counts["accepted"] > 50
    ranks.close()


EXACT = {
    "attention": lambda: qwen3(vocab_size=VOCABULARY, tie_word_embeddings=True, hidden_size=128, head_dim=32),
    "states": lambda: qwen3_5(),
    "convolutions": lambda: lfm2(),
    "space": lambda: granite_hybrid(),
}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_model_gives_the_same_bits(tmp_path, knowing, name):
    torch.manual_seed(11)
    model = EXACT[name]()
    fill(model, std=0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    runner = make_runner(tmp_path, dtype="bfloat16", exact=True, **SIZES)
    runner.load(lambda fraction, message: None)
    submits = [request(n, [*range(6, 30 + n)], 50, temperature=n % 2, seed=n, logprobs=3) for n in range(4)]
    expected, _ = answers_of(runner, submits)
    knowing(submits, expected)
    found, counts = answers_of(runner, submits, speculation="ngram")
    assert msgspec.json.encode(found) == msgspec.json.encode(expected)
    assert counts["accepted"] > 50
    runner.close()


class Blunders:
    """Guesses a token whose numbers are not finite, behind some that may be right."""

    def __init__(self, knows: Knows) -> None:
        self._knows = knows

    def draft(self, token_ids, most):
        return [*self._knows.draft(token_ids, most - 1)[: len(token_ids) % 3], DAMAGED, 3][:most]


DAMAGED = 5  # a token with a row of the embeddings that is no number


@pytest.mark.parametrize(
    ("name", "size"),
    [*(("qwen3_untied_biased", float(size)) for size in ("inf", "nan")), ("qwen3_5", float("nan"))],
)
def test_a_wrong_draft_that_is_not_finite_spoils_nothing(tmp_path, tiny, monkeypatch, name, size):
    """Nor what others answer beside it, nor who gets its pages and states later."""
    source = tiny(name).folder
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.embed_tokens.weight"][DAMAGED] = size
    save_file(weights, tmp_path / "model.safetensors")
    runner = make_runner(tmp_path, **SIZES)
    runner.load(lambda fraction, message: None)
    banned = {"logit_bias": {DAMAGED: -100.0}}  # nobody feeds it who does not guess it
    settings = [{}, {"logprobs": 2}, {"temperature": 1.0, "seed": 7, "logprobs": 0}, {"prompt_logprobs": 1}]
    submits = [
        request(number, [*range(6 + number, 30 + 5 * number)], 70, **each, **banned)
        for number, each in enumerate(settings)
    ]
    expected, _ = answers_of(runner, submits)
    assert all(len(answer.token_ids) == 70 for answer in expected)
    told = {tuple(prompt_of(each)): it.token_ids for each, it in zip(submits, expected, strict=True)}
    monkeypatch.setitem(drafts.DRAFTERS, "ngram", lambda: Blunders(Knows(told)))
    found, counts = answers_of(runner, submits, speculation="ngram", kv_pages=14)
    assert_equal(found, expected)
    assert counts["preemptions"] >= len(submits), "each guesses wrong once, and no more"
    assert_equal(answers_of(runner, submits)[0], expected)
    runner.close()


# --- the setting --------------------------------------------------------------------------------------------


def test_a_model_that_writes_nothing_is_refused_by_the_reason(tmp_path):
    encoders.write("bert", tmp_path)
    card = read_card(tmp_path)
    with pytest.raises(CortexError, match=f"speculation ngram is not for {card.architecture}.*no text"):
        described(ModelSettings(id="some", speculation="ngram"), card)
    assert described(ModelSettings(id="some"), card)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["qwen3_tied", "qwen3_5", "lfm2"])
def test_the_logits_and_the_states_behind_guesses_are_planned(tiny, kind, name):
    card, overhead = read_card(tiny(name).folder), []
    for speculation in (None, "ngram"):
        settings = ModelSettings(id="some", speculation=speculation, max_sequences=2, max_step_tokens=32)
        overhead.append(getattr(described(settings, card).need(settings).ranks[0], f"{kind}_overhead"))
    kept = FREE_ROWS * card.config.guess_bytes(WHOLE)
    assert bool(kept) == (name != "qwen3_tied")
    assert overhead[1] - overhead[0] >= (FREE_ROWS - 1) * card.config.vocab_size * 4 + kept


def test_a_worker_guesses_where_its_spec_says_so():
    loaded = Loaded(100, MemoryUse())
    for speculation, guesses in ((None, False), ("ngram", True)):
        scheduler = make_worker_scheduler(make_spec(speculation=speculation), loaded)
        scheduler.submit(request(1, [5] * 40, 20))
        drafted = 0
        while plan := scheduler.plan():
            drafted += sum(len(entry.drafts) for entry in plan.scheduled)
            scheduler.observe(StepResult([5] * (1 + len(plan.scheduled[0].drafts))))
        assert bool(drafted) == guesses
        [*_, last] = scheduler.take_reports()
        assert last.finish == "length"
