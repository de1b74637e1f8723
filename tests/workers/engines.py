"""Engines without processes around them: specs for them, and a scheduler that drives them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ipc.worker_messages import Logprobs, RingHandle, SamplingParams, SequenceReport, Submit, WorkerSpec
from workers.checkpoints.adapter import read_adapter
from workers.checkpoints.caches import num_states
from workers.checkpoints.reading import read_card
from workers.execution.model_runner import ModelRunner
from workers.process.loop import Flight
from workers.scheduling.pacing import Pace
from workers.scheduling.scheduler import Scheduler
from workers.step.engine import Engine, OutOfDeviceMemory

VOCABULARY = 131  # tokens of tiny checkpoints

LIMITS = {"max_sequences": 8, "max_step_tokens": 64, "context_length": 4096, "kv_pages": 200}
LARGEST = {"max_sequences": 16, "max_step_tokens": 512}  # of the steps that most tests make; a load tries one
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU")]
DEVICES = ["cpu", pytest.param("cuda:0", marks=GPU)]  # what a test is parametrised with to run on both


def make_runner(folder: str | Path, adapters: Sequence[str | Path] = (), **changes: Any) -> ModelRunner:
    """The engine of the checkpoint in `folder`, in a worker as `make_spec` has it; not loaded yet."""
    card = read_card(folder, mtp=changes.get("speculation") == "mtp")
    beside = [read_adapter(str(each), each, card) for each in adapters]
    return ModelRunner(make_spec(**changes), card, beside)


def make_spec(**changes: Any) -> WorkerSpec:
    """A worker of one rank in float32; its rings are not there."""
    nowhere = RingHandle(memory_fd=-1, data_fd=-1, space_fd=-1)
    values = (
        LIMITS
        | LARGEST
        | {
            "model": "test",
            "engine": "transformer",
            "epoch": 1,
            "rank": 0,
            "world_size": 1,
            "device": "cpu",
            "threads": 1,
            "dtype": "float32",
            "reports": nowhere,
            "heartbeat_fd": -1,
        }
    )
    return WorkerSpec(**values | changes)


def request(request_id: int, prompt: list[int], max_tokens: int, **sampling: Any) -> Submit:
    params = SamplingParams(**{"temperature": 0.0} | sampling)
    return Submit(request_id, array("I", prompt).tobytes(), max_tokens, params)


def some_requests(count: int, vocab_size: int, seed: int, longest: int = 40) -> list[Submit]:
    """Prompts of 1 to 150 tokens, with lengths on both sides of a page's end, and answers of all lengths."""
    rng = random.Random(seed)
    requests = []
    for request_id in range(count):
        length = rng.choice((1, 2, 31, 32, 33, 64, rng.randint(1, 150)))
        prompt = [rng.randrange(vocab_size) for _ in range(length)]
        requests.append(request(request_id, prompt, rng.randint(1, longest)))
    return requests


def prompt_of(submit: Submit) -> list[int]:
    return array("I", submit.prompt).tolist()


@dataclass
class Answer:
    """All that the reports on one sequence said."""

    token_ids: list[int] = field(default_factory=list)
    finish: str = ""
    message: str = ""
    code: str = ""
    cached_tokens: int = 0
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    embedding: bytes = b""

    def take(self, report: SequenceReport) -> None:
        assert not self.finish, "a report after the end"
        self.token_ids += report.token_ids
        said = report.details
        self.finish, self.message, self.code = report.finish, said.message, said.code
        self.cached_tokens = self.cached_tokens or said.cached_tokens
        self.logprobs += said.logprobs
        self.prompt_logprobs += said.prompt_logprobs
        self.embedding += said.embedding


class Session:
    """A scheduler that drives an engine. Its first plan expects that all slots are empty."""

    def __init__(self, engine: Engine, **limits: int) -> None:
        self.engine, self.in_flight = engine, getattr(engine, "in_flight", 0)
        caches = engine.groups if hasattr(engine, "groups") else ()
        states = {"states": num_states(caches, (LIMITS | limits)["max_sequences"])}
        self.scheduler = Scheduler(**states | LIMITS | limits, caches=caches)

    def answer(
        self, requests: list[Submit], *, seed: int | None = None, aborts: bool = False
    ) -> list[Answer]:
        """Serve `requests` to their ends.

        Without a seed they all come at once. With one they come at random steps, and with `aborts` some end
        at random; the same seed makes the same plans, so every rank of a group can drive itself.
        """
        flight = Flight(self.engine, self.scheduler, Pace(1), self.in_flight)
        rng = random.Random(seed)
        coming = list(reversed(requests))
        answers = {submit.request_id: Answer() for submit in requests}
        while True:
            while coming and (seed is None or rng.random() < 0.4):
                self.scheduler.submit(coming.pop())
            if aborts and rng.random() < 0.01:
                self.scheduler.abort(rng.choice(requests).request_id)
            plan = self.scheduler.plan() if flight.is_ahead else None
            if plan is not None:
                try:
                    flight.send(plan)
                except OutOfDeviceMemory as error:
                    self.scheduler.step_failed(str(error))
            over = plan is None and not flight.steps and not coming
            if plan is None or len(flight.steps) > self.in_flight:
                flight.land()
            for report in self.scheduler.take_reports():
                answers[report.request_id].take(report)
            if over:
                return list(answers.values())

    def end(self) -> None:
        """Empty the engine's slots for the next scheduler."""
        self.engine.empty()


def serve(
    engine: Engine, requests: list[Submit], *, seed: int | None = None, **limits: int
) -> list[list[int]]:
    """The tokens of each request, from a scheduler of its own; with a seed, some requests are aborted."""
    session = Session(engine, **limits)
    answers = session.answer(requests, seed=seed, aborts=seed is not None)
    session.end()
    for answer in answers:
        assert answer.finish != "error", answer.message
    return [answer.token_ids for answer in answers]


def logits_of(runner: ModelRunner, prompt: list[int]) -> torch.Tensor:
    """Of the token after the prompt, over the vocabulary."""
    seen, logits = [], runner.model.logits
    runner.model.logits = lambda x: seen.append(logits(x)) or seen[-1].clone()
    serve(runner, [request(1, prompt, 1)])
    del runner.model.logits
    return seen[-1][0]


def unlike_requests(count: int):
    """Greedy and sampled ones, each with its own seed and settings."""
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 3.0, "top_k": 40, "top_p": 0.95},
        {"temperature": 2.0, "min_p": 0.02, "repetition_penalty": 1.3, "min_tokens": 5},
        {"temperature": 0.0, "presence_penalty": 0.7, "frequency_penalty": 0.4, "logit_bias": {7: 4.0}},
        {"temperature": 1.0, "bad_words": [[3], [5, 9]], "allowed_token_ids": list(range(60))},
    ]
    for submit in some_requests(count, VOCABULARY, seed=3):
        chosen = settings[submit.request_id % len(settings)]
        submit.params = SamplingParams(**chosen, seed=1000 + submit.request_id)
        yield submit
