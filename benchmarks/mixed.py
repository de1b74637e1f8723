"""Requests of all lengths at once, beside transformers' continuous batching: a part of `benchmarks.gpu`.

Each is greedy and writes as many tokens as it asks for. Both engines have them all from the beginning, in
turn on the same device, and the time counts from there to the last token; so does that of one request alone.
Each serves them twice, and the second time counts: the first meets kernels and shapes that are new.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager

from ipc.worker_messages import SamplingParams, Submit
from workers.execution.model_runner import ModelRunner
from workers.process.loop import Flight, make_scheduler
from workers.scheduling.pacing import Pace
from workers.step.engine import Loaded

PROMPT, ANSWER = (16, 1024), (16, 256)  # tokens, at least and at most
TIMEOUT = 60.0  # seconds without a token, and the peer has failed


class Request:
    """A prompt, and how many tokens are to be written behind it."""

    def __init__(self, prompt: list[int], answer: int) -> None:
        self.prompt, self.answer = prompt, answer


def some(count: int, vocabulary: int, small: bool = False) -> list[Request]:
    """Of lengths at random, the same each time.

    Args:
        small: prompts and answers are an eighth of what they are otherwise.
    """
    rng = random.Random(count)
    part = 8 if small else 1
    lengths = [(rng.randint(*PROMPT) // part, rng.randint(*ANSWER) // part) for _ in range(count)]
    return [Request([rng.randrange(vocabulary) for _ in range(prompt)], answer) for prompt, answer in lengths]


def ours(runner: ModelRunner, loaded: Loaded, requests: list[Request]) -> float:
    """Seconds until the last token of all, in the loop of a rank without its rings."""
    scheduler = make_scheduler(runner.spec, loaded)
    flight = Flight(runner, scheduler, Pace(runner.spec.max_step_tokens), loaded.in_flight)
    written, wanted = 0, sum(request.answer for request in requests)
    began = time.perf_counter()
    for number, each in enumerate(requests):
        prompt = array("I", each.prompt).tobytes()
        scheduler.submit(Submit(number, prompt, each.answer, SamplingParams(0.0)))
    while True:
        plan = scheduler.plan() if flight.is_ahead else None
        if plan is not None:
            flight.send(plan)
        over = plan is None and not flight.steps
        if plan is None or len(flight.steps) > loaded.in_flight:
            flight.land()
        written += sum(len(report.token_ids) for report in scheduler.take_reports())
        if over:
            break
    took = time.perf_counter() - began
    runner.empty()
    if written != wanted:
        raise RuntimeError(f"{written} of {wanted} tokens were written")
    return took


class Peer:
    """A model of transformers with random weights, and its continuous batching as it chooses to be.

    Args:
        settings: of `ContinuousBatchingConfig`.
    """

    def __init__(self, shape: PretrainedConfig, device: str, **settings: Any) -> None:
        with torch.device(device):
            self._model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()
        self._settings = settings

    def serve(self, requests: list[Request]) -> float:
        """As `ours`, the second time. What it makes ready before it takes requests does not count.

        Raises:
            RuntimeError: it did not write what was asked for.
        """
        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        config.max_new_tokens = max(each.answer for each in requests)
        # the second time nothing of a prompt is to be there already
        batching = ContinuousBatchingConfig(allow_block_sharing=False, **self._settings)
        with self._model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=batching
        ) as manager:
            _, took = (_answered(manager, requests) for _ in range(2))
        return took


def _answered(manager: ContinuousBatchingManager, requests: list[Request]) -> float:
    """Seconds until all requests are."""
    began = time.perf_counter()
    left = {manager.add_request(each.prompt, max_new_tokens=each.answer): each.answer for each in requests}
    while left:
        result = manager.get_result(timeout=TIMEOUT)
        if result is None:
            raise RuntimeError(f"{len(left)} requests are not answered")
        if result.error is not None:
            raise RuntimeError(str(result.error))
        if result.is_finished() and len(result.generated_tokens) != left.pop(result.request_id):
            raise RuntimeError("an answer has another length than it was to have")
    return time.perf_counter() - began


def rows(
    runner: ModelRunner, loaded: Loaded, counts: tuple[int, ...], small: bool
) -> Iterator[tuple[int, list[Request], float]]:
    """Of so many requests at once: these, and the seconds that they take us."""
    for count in counts:
        requests = some(count, runner.card.config.vocab_size, small)
        _, took = (ours(runner, loaded, requests) for _ in range(2))
        yield count, requests, took
