"""A step that runs out of memory at any of its calls ends no worker, and changes no other answer."""

from __future__ import annotations

from array import array

import msgspec
import pytest
import torch

from ipc.worker_messages import SamplingParams, Submit
from tests.workers.engines import Answer, Session, make_runner, prompt_of, unlike_requests
from tests.workers.guessing import Knows, of_all_kinds, replace_id
from tests.workers.recorded import record_steps
from tests.workers.shortage import Shortage, assert_nothing_is_held, assert_right, short_of_memory
from workers.attention.states import RecurrentStates
from workers.cache.state import HostStates
from workers.execution import model_runner
from workers.execution.model_runner import ModelRunner
from workers.sampling.penalties import Penalties
from workers.scheduling import drafts

LIMITS = {"context_length": 96, "max_step_tokens": 64}
# The first call that fails, and each how many follow it: more than a step has, so that most steps go well.
FAILURES = [(5, 613), (101, 709), (377, 811)]


@pytest.fixture(scope="module", params=["cpu", "in flight", "recorded"])
def runner(request, tiny):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "recorded":
            record_steps(patch)
        runner = make_runner(tiny("qwen3_untied_biased").folder, **LIMITS)
        runner.in_flight = int(request.param != "cpu")
        runner.load(lambda fraction, message: None)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def expected(runner) -> list[Answer]:
    session = Session(runner, **LIMITS)
    answers = session.answer(requests())
    session.end()
    return answers


def requests() -> list[Submit]:
    """Of all settings; of some the prompts are told of, or vectors."""
    found = [*unlike_requests(8)]
    for number, submit in enumerate(found):
        submit.prompt, submit.max_tokens = submit.prompt[: 4 * (20 + 5 * number)], 3 + number
    found[2].params = SamplingParams(0.0, prompt_logprobs=2)
    found[3].pooling, found[3].max_tokens = "mean", 1
    found[4].params = SamplingParams(1.0, seed=5, no_repeat_ngram=2, logprobs=2)
    return found


@pytest.mark.parametrize(("first", "every"), FAILURES)
def test_whichever_calls_of_steps_find_no_memory_the_answers_are_the_same(runner, expected, first, every):
    session = Session(runner, **LIMITS)
    with short_of_memory(runner, first, every) as shortage:
        answers = session.answer(requests(), seed=3)
    assert_nothing_is_held(session)
    session.end()
    # one that is met while a step is recorded ends the recording alone
    assert len(shortage.failed) >= session.scheduler.statistics()["out_of_memory"] > 3
    assert assert_right(answers, expected) < 5


def test_what_was_kept_of_a_step_that_failed_at_its_end_is_as_it_was_before(runner, expected, monkeypatch):
    """Tokens are chosen by then, and counted; and of the last part of a text the vector is there."""
    ends = [(model_runner.LatestTokens, "keep"), (Penalties, "record"), (Penalties, "add")]
    for owner, name in ends[runner.in_flight == 0 :]:
        plain, calls = getattr(owner, name), []

        def unsteady(*given, plain=plain, calls=calls):
            calls.append(None)
            plain(*given)
            if len(calls) in (2, 6, 11):
                raise torch.OutOfMemoryError("CUDA out of memory, as a test wants it")

        monkeypatch.setattr(owner, name, unsteady)
        session = Session(runner, **LIMITS)
        answers = session.answer(requests(), seed=3)
        monkeypatch.undo()
        assert_nothing_is_held(session)
        session.end()
        assert not runner.sampler._slots
        assert not runner.sampler._penalties._places
        assert session.scheduler.statistics()["out_of_memory"] > 1
        assert_right(answers, expected)


# --- states -------------------------------------------------------------------------------------------------

STATEFUL = {"max_sequences": 16, "states": 4, "host_states": 24, "speculation": "ngram"}


@pytest.fixture(scope="module", params=["qwen3_5", "lfm2", "granitemoehybrid"])
def hybrid(request, tiny):
    """A model with states, requests, and the answers to them."""
    runner = make_runner(tiny(request.param).folder, host_states=24, context_length=256, max_step_tokens=64)
    runner.load(lambda fraction, message: None)
    asked = [
        msgspec.structs.replace(each, prompt=array("I", range(6 + n, 70 + 10 * n)).tobytes(), max_tokens=9)
        for n, each in enumerate(of_all_kinds()[:4])
    ]
    session = Session(runner, max_step_tokens=64)
    answers = session.answer(asked)
    session.end()
    told = {tuple(prompt_of(each)): it.token_ids for each, it in zip(asked, answers, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drafts.DRAFTERS, "ngram", lambda: Knows(told))
        yield runner, asked, answers
    runner.close()


def two_turns(runner: ModelRunner, asked: list[Submit], expected: list[Answer]) -> dict[str, int]:
    """Answer them twice, the second time from what is kept of the first; the counts of that."""
    session = Session(runner, max_step_tokens=64, **STATEFUL)
    assert_right(session.answer(asked, seed=3), expected)
    assert_right(session.answer([replace_id(each) for each in asked], seed=4), expected)
    assert_nothing_is_held(session)
    session.end()
    return session.scheduler.statistics()


@pytest.mark.parametrize(("first", "every"), [(57, 1709), (911, 2203)])
def test_the_same_holds_of_models_with_states_and_of_guesses(hybrid, first, every):
    with short_of_memory(hybrid[0], first, every) as shortage:
        counts = two_turns(*hybrid)
    assert len(shortage.failed) == counts["out_of_memory"] > 2


@pytest.mark.parametrize(("owner", "name"), [(RecurrentStates, "adopt"), (HostStates, "move")])
def test_states_that_are_half_ready_when_memory_runs_out_are_made_ready_by_the_next_step(
    hybrid, monkeypatch, owner, name
):
    """By drafts that were right; and those that leave the device and come back."""
    plain, shortage = getattr(owner, name), Shortage(2, 17 if name == "adopt" else 5)

    def short(*given):
        with shortage:
            plain(*given)

    monkeypatch.setattr(owner, name, short)
    counts = two_turns(*hybrid)
    assert len(shortage.failed) == counts["out_of_memory"] > 1
