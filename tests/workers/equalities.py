"""One set of unlike requests, answered under every circumstance that must not matter."""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from ipc.worker_messages import PAGE_SIZE, Constraint, Logprobs, SamplingParams, Submit
from neuron.grammar.structured import OPTIONS
from tests.workers.engines import Answer, Session, prompt_of
from workers.execution.model_runner import ModelRunner
from workers.step.engine import OutOfDeviceMemory, StepResult
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

CLOSE = 1e-4  # nats

VOCABULARY = 1856  # of the demo's tokenizer, padded
STOP = 0  # its end of text
CHOICES = 5  # of a request with n
WORDS = Constraint(f'start: WORD (" " WORD)*\nWORD: /[a-z]{{2,9}}/\n{OPTIONS}')
LIST = Constraint(f'start: "[" NUMBER ("," NUMBER)* "]"\nNUMBER: /[0-9]{{1,3}}/\n{OPTIONS}')


@dataclass
class Observed:
    """What one rank saw."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)  # by circumstance
    preemptions: int = 0  # where pages were few
    step_collectives: int = 0  # in one step
    collective_seconds: float = 0.0  # in all


def requests(every: int = 1) -> list[Submit]:
    """Every way to choose tokens, and prompts that have beginnings in common; all, or one of so many."""
    rng = random.Random(5)
    tokens = [rng.randrange(6, VOCABULARY) for _ in range(500)]
    settings = [
        ({"temperature": 0.0, "logprobs": 5}, {}),
        ({"temperature": 0.0, "repetition_penalty": 1.4, "logprobs": 0}, {}),
        ({"temperature": 0.0, "presence_penalty": 0.8, "frequency_penalty": 0.5}, {}),
        ({"temperature": 1.0}, {}),
        ({"temperature": 2.0, "top_k": 20, "logprobs": 20}, {}),
        ({"temperature": 2.0, "top_p": 0.8, "min_p": 0.001}, {}),
        ({"temperature": 3.0, "frequency_penalty": 1.0, "repetition_penalty": 0.9, "min_p": 0.01}, {}),
        ({"temperature": 1.5, "logit_bias": {7: 30.0, 9: 31.0}, "bad_words": [[7, 9], [11]]}, {}),
        ({"temperature": 1.0, "allowed_token_ids": list(range(40)), "stop_ids": [3], "min_tokens": 9}, {}),
        ({"temperature": 0.0, "stop_ids": [STOP], "logprobs": 2}, {"constraint": WORDS}),
        ({"temperature": 2.0, "stop_ids": [STOP], "presence_penalty": 0.5}, {"constraint": LIST}),
        ({"temperature": 0.0, "prompt_logprobs": 3}, {}),
        ({"temperature": 1.0, "prompt_logprobs": 0, "logprobs": 1}, {}),
        ({}, {"pooling": "last"}),
        ({}, {"pooling": "mean"}),
        ({"temperature": 1.0, "repetition_penalty": 1.1}, {"pooling": ""}),
    ]
    lengths = [70, 1, 33, 150, 64, 65, 20, 32, 31, 40, 96, 130, 67, 90, 90, 400]
    return [
        Submit(
            number,
            # half of them begin alike, the others each have their own prompt
            array("I", tokens[:length] if number % 2 else tokens[number : number + length]).tobytes(),
            1 if others.get("pooling") else 8 + number,
            SamplingParams(**sampling, seed=(1 << 64) - 1 - number),
            **others,
        )
        for number, (length, (sampling, others)) in enumerate(zip(lengths, settings, strict=True))
    ][::every]


def largest_step(every: int) -> int:
    """Tokens: all prompts at once, each with half of its answer where it is resumed."""
    return max(512, sum(len(submit.prompt) // 4 + submit.max_tokens // 2 for submit in requests(every)))


def choices() -> list[Submit]:
    """The sequences of a request with `n`: one prompt, and seeds that follow each other."""
    prompt = array("I", range(100, 210)).tobytes()
    params = [SamplingParams(temperature=3.0, seed=(1 << 64) - 2 + i & (1 << 64) - 1) for i in range(CHOICES)]
    return [Submit(i, prompt, 15, each) for i, each in enumerate(params)]


def answer_alone(runner: ModelRunner, submits: list[Submit]) -> list[Answer]:
    """Each as the only request that there ever was."""
    answers = []
    for submit in submits:
        session = Session(runner, max_step_tokens=512)
        answers += session.answer([submit])
        session.end()
    return answers


def observe(runner: ModelRunner, every: int = 1) -> Observed:
    """Answer the requests in all circumstances of one engine; on one rank, or if it is exact, also alone.
    Choices are only asked for where it is not exact: to an engine they are requests like others."""
    seen = Observed()

    def answer(name: str, submits: list[Submit], seed: int | None = None, **limits: int) -> None:
        session = Session(runner, **limits)
        seen.answers[name] = session.answer(submits, seed=seed)
        session.end()

    if runner.group.size == 1 or runner.spec.exact:
        seen.answers["alone"] = answer_alone(runner, requests(every))
    if not runner.spec.exact:
        answer("choices", choices())
        if runner.group.size == 1:
            seen.answers["single"] = answer_alone(runner, choices())
    answer("batched", requests(every), max_sequences=16, max_step_tokens=largest_step(every))
    answer("chunked", requests(every), seed=1, max_step_tokens=41)
    session = Session(runner, max_sequences=16, max_step_tokens=512)
    session.answer(requests(every))
    later = copy.deepcopy(requests(every))
    for submit in later:
        submit.request_id += 1000
    seen.answers["cached"] = session.answer(later)
    session.end()
    session = Session(runner, max_sequences=16, kv_pages=15)
    with short_of_memory(session, runner):
        seen.answers["preempted"] = session.answer(requests(every), seed=2)
    session.end()
    seen.preemptions = session.scheduler.statistics()["preemptions"]
    before, _ = runner.collectives()
    runner.execute(StepPlan(1, [], [NewSequence(0, 1, bytes(4), SamplingParams())], [Scheduled(0, 1, [[0]])]))
    after, seen.collective_seconds = runner.collectives()
    seen.step_collectives = after - before
    return seen


@contextmanager
def short_of_memory(session: Session, runner: ModelRunner) -> Iterator[None]:
    """Some steps fail, on all ranks the same ones; but none after which a request would be given up."""
    step, rng = runner._step, random.Random(3)

    def unsteady(scheduled: list[Scheduled]) -> StepResult:
        if len(scheduled) > 1 and not session.scheduler._suspects and rng.random() < 0.3:
            raise OutOfDeviceMemory("as a test wants it")
        return step(scheduled)

    runner._step = unsteady
    yield
    runner._step = step


def resume(runner: ModelRunner, stopped: list[Answer], every: int = 1) -> list[list[int]]:
    """Take half of each answer that another engine gave, and write the rest; returns the whole tokens.

    `stopped` has the answers to `requests(every)`."""
    outputs = [answer.token_ids[: len(answer.token_ids) // 2] for answer in stopped]
    lengths = [len(answer.token_ids) for answer in stopped]
    added, scheduled, free = [], [], 0
    for slot, (submit, output) in enumerate(zip(requests(every), outputs, strict=True)):
        if submit.pooling:
            continue
        tokens = array("I", prompt_of(submit) + output)
        added.append(
            NewSequence(slot, len(submit.prompt) // 4, tokens.tobytes(), submit.params, submit.constraint)
        )
        pages = range(free, free + pages_for(len(submit.prompt) // 4 + lengths[slot]))
        scheduled.append(Scheduled(slot, len(tokens), [list(pages)]))
        free = pages.stop
    step, tokens = 0, []
    while scheduled:
        step += 1
        result = runner.execute(StepPlan(step, [], added, scheduled, tokens))
        tokens = result.tokens
        for entry, token in zip(scheduled, result.tokens, strict=True):
            outputs[entry.slot].append(token)
        open_slots = [entry.slot for entry in scheduled if len(outputs[entry.slot]) < lengths[entry.slot]]
        added, scheduled = [], [Scheduled(slot, 1) for slot in open_slots]
    return outputs


assert max(len(submit.prompt) // 4 + submit.max_tokens for submit in requests()) < 15 * PAGE_SIZE


def assert_close(ours: list[Logprobs], theirs: list[Logprobs]) -> None:
    assert [each.token for each in ours] == [each.token for each in theirs]
    assert [each.logprob for each in ours] == pytest.approx([each.logprob for each in theirs], abs=CLOSE)
    for mine, other in zip(ours, theirs, strict=True):
        assert [value for _, value in mine.top] == pytest.approx([value for _, value in other.top], abs=CLOSE)


def assert_equal(ours: list[Answer], theirs: list[Answer]) -> None:
    """The same tokens and ends, and numbers that are close."""
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.token_ids, mine.finish, mine.code) == (other.token_ids, other.finish, other.code)
        assert_close(mine.logprobs, other.logprobs)
        assert_close(mine.prompt_logprobs, other.prompt_logprobs)
        torch.testing.assert_close(vector(mine), vector(other), rtol=CLOSE, atol=CLOSE)


def vector(answer: Answer) -> torch.Tensor:
    """`[hidden]` float32 of what embeds; one zero of what does not."""
    return torch.frombuffer(bytearray(answer.embedding or bytes(4)), dtype=torch.float32)
