"""A step that is sent while one runs brings what it would have brought after it."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch

from ipc.errors import Code
from tests.demo import DEMO
from tests.workers import equalities
from tests.workers.engines import GPU, Session, make_runner, request, serve
from tests.workers.oracle import fill
from tests.workers.recorded import LIMITS, record_steps, requests
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import qwen3
from workers.process.loop import Flight
from workers.step.engine import OutOfDeviceMemory


@pytest.fixture(scope="module", params=["cpu", "recorded", pytest.param("cuda:0", marks=GPU)])
def runner(request, tiny):
    """With a step in flight, as on a GPU; also where steps are recorded."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "recorded":
            record_steps(patch)
        device = "cpu" if request.param == "recorded" else request.param
        runner = make_runner(tiny("qwen3_untied_biased").folder, device=device, **LIMITS)
        runner.in_flight = 1
        runner.load(lambda fraction, message: None)
        yield runner
        runner.close()


def one_after_the_other(runner, submits, **limits):
    """Their answers without steps in flight."""
    runner.in_flight = 0
    tokens = serve(runner, submits, **LIMITS | limits)
    runner.in_flight = 1
    return tokens


@pytest.fixture
def most_in_flight(monkeypatch) -> list[int]:
    """How many steps there were after each that was sent."""
    seen = []
    send = Flight.send

    def counted(flight, plan):
        send(flight, plan)
        seen.append(len(flight.steps))

    monkeypatch.setattr(Flight, "send", counted)
    return seen


def test_answers_do_not_depend_on_steps_in_flight(runner, most_in_flight):
    expected = one_after_the_other(runner, requests())
    assert max(most_in_flight) == 1
    assert serve(runner, requests(), **LIMITS) == expected
    assert max(most_in_flight) == 2


def test_what_a_step_is_padded_with_is_nobody_s_newest_token(runner, most_in_flight):
    """Three sequences of plain settings, which are drawn within the step, and padded to four."""
    submits = [request(i, [5 + i] * 8, 12, temperature=1.0, seed=i) for i in range(3)]
    expected = one_after_the_other(runner, submits, max_sequences=3)
    assert serve(runner, submits, **LIMITS | {"max_sequences": 3}) == expected
    assert max(most_in_flight) == 2


def test_ranks_feed_what_rank_0_chose_while_its_step_runs(tiny, monkeypatch, most_in_flight):
    """As on GPUs: collectives are in recorded steps, and tokens go from rank 0 to the others with no host
    between. Where a step is replayed, they count as if it were not."""
    recorder = record_steps(monkeypatch)
    ranks = Ranks(tiny("qwen3_untied_biased").folder, 2, monkeypatch, **LIMITS)
    found, counted = [], []
    for ranks.in_flight, paused in ((0, True), (1, True), (1, False)):
        for each in ranks.ranks:
            each.graphs.paused = paused
        before = ranks.ranks[1].collectives()[0]
        most_in_flight.clear()
        found.append(serve(ranks, requests(6), **LIMITS))
        assert max(most_in_flight) == 1 + ranks.in_flight
        counted.append(ranks.ranks[1].collectives()[0] - before)
    assert found[1:] == found[:1] * 2
    assert counted[1] == counted[2]
    assert recorder.replayed > recorder.captured > 0
    ranks.close()


def test_nor_do_they_when_sequences_come_leave_or_are_preempted(runner):
    def growing():
        return [request(i, [5 + i] * 20, 20 + i, temperature=1.0, seed=i) for i in range(5)]

    expected = one_after_the_other(runner, growing())
    session = Session(runner, **LIMITS | {"kv_pages": 3})
    answers = session.answer(growing(), seed=7, aborts=True)
    assert session.scheduler.statistics()["preemptions"] > 0
    session.end()
    for answer, tokens in zip(answers, expected, strict=True):
        assert answer.finish in ("length", "stop", "aborted")
        assert answer.token_ids == tokens[: len(answer.token_ids)]
        assert answer.finish == "aborted" or len(answer.token_ids) == len(tokens)


def test_a_stop_ends_an_answer_though_the_next_step_was_sent(runner):
    [plain] = serve(runner, [request(1, [5, 6, 7], 12)], **LIMITS)
    stop = plain[6]
    until = plain[: plain.index(stop) + 1]
    beside = request(2, [9, 8], 30, temperature=1.0)
    [alone] = serve(runner, [beside], **LIMITS)
    assert serve(runner, [request(1, [5, 6, 7], 12, stop_ids=[stop]), beside], **LIMITS) == [until, alone]


def test_what_has_to_know_its_last_token_is_not_sent_ahead(runner, most_in_flight):
    """Runs that may not come again, and words of several tokens that may not come at all."""
    for settings in ({"no_repeat_ngram": 2}, {"bad_words": [[5, 9]]}):
        submits = [request(1, [5, 6, 7], 12, **settings)]
        expected = one_after_the_other(runner, submits)
        most_in_flight.clear()
        assert serve(runner, submits, **LIMITS) == expected
        assert max(most_in_flight) == 1


def test_steps_that_get_no_memory_lose_none_of_those_before_them(runner, monkeypatch):
    expected = one_after_the_other(runner, requests(6))
    session = Session(runner, **LIMITS)
    step, rng = runner._step, random.Random(3)

    def unsteady(scheduled):
        if len(scheduled) > 1 and not session.scheduler._suspects and rng.random() < 0.2:
            raise OutOfDeviceMemory("as a test wants it")
        return step(scheduled)

    monkeypatch.setattr(runner, "_step", unsteady)
    answers = session.answer(requests(6))
    assert session.scheduler.statistics()["out_of_memory"] > 1
    session.end()
    assert [answer.token_ids for answer in answers] == expected


def test_numbers_that_are_not_finite_end_one_answer_and_are_fed_to_nobody(runner, monkeypatch):
    good = request(1, [9, 8], 20)
    [expected] = serve(runner, [good], **LIMITS)
    launch, broken = runner.sampler.launch, 0

    def damaged(logits, slots, *others):
        nonlocal broken
        broken += 1
        if broken == 4:
            logits[slots.index(1)] = float("nan")
        return launch(logits, slots, *others)

    monkeypatch.setattr(runner.sampler, "launch", damaged)
    monkeypatch.setattr(runner.sampler, "ways", lambda slots: None)
    session = Session(runner, **LIMITS)
    whole, ended = session.answer([good, request(2, [4, 5, 6], 20)])
    session.end()
    assert whole.token_ids == expected
    assert (ended.finish, ended.code, len(ended.token_ids)) == ("error", Code.INTERNAL, 3)


def test_grammars_logprobs_and_vectors_come_as_they_do_alone(tmp_path):
    torch.manual_seed(11)
    model = qwen3(vocab_size=equalities.VOCABULARY, tie_word_embeddings=True)
    fill(model, std=0.3)
    model.save_pretrained(tmp_path)
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    submits = [equalities.requests()[number] for number in (0, 1, 9, 11, 13, 14)]
    found = []
    for in_flight in (0, 1):
        runner = make_runner(tmp_path, max_step_tokens=128)
        runner.in_flight = in_flight
        runner.load(lambda fraction, message: None)
        session = Session(runner, max_sequences=16)
        found.append(session.answer(submits, seed=1))
        session.end()
        runner.close()
    for ahead, behind in zip(*found, strict=True):
        assert (ahead.token_ids, ahead.finish) == (behind.token_ids, behind.finish)
        for told in ("logprobs", "prompt_logprobs"):
            pairs = zip(getattr(ahead, told), getattr(behind, told), strict=True)
            assert all(one.logprob == pytest.approx(other.logprob, abs=1e-4) for one, other in pairs)
        vectors = [np.frombuffer(each.embedding, "<f4") for each in (ahead, behind)]
        np.testing.assert_allclose(*vectors, atol=1e-4)
    assert sum(len(answer.embedding) > 0 for answer in found[1]) == 2
    assert sum(len(answer.prompt_logprobs) > 0 for answer in found[1]) == 1
