"""Engines without processes around them: specs for them, and a scheduler that drives them."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

from ipc.worker_messages import RingHandle, SamplingParams, Submit, WorkerSpec
from workers.engine import Engine
from workers.scheduler import Scheduler

LIMITS = {"max_sequences": 8, "max_step_tokens": 64, "context_length": 4096, "kv_pages": 200}


def make_spec(folder: str | Path, **changes: Any) -> WorkerSpec:
    """A worker of one rank in float32; its rings are not there."""
    nowhere = RingHandle(memory_fd=-1, data_fd=-1, space_fd=-1)
    values = LIMITS | {
        "model": "test",
        "engine": "transformer",
        "epoch": 1,
        "rank": 0,
        "world_size": 1,
        "device": "cpu",
        "threads": 1,
        "folder": str(folder),
        "dtype": "float32",
        "reports": nowhere,
        "heartbeat_fd": -1,
    }
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


def serve(
    engine: Engine, requests: list[Submit], *, seed: int | None = None, **limits: int
) -> list[list[int]]:
    """Drive `engine` until all requests have ended; returns the output of each.

    Without a seed they all come at once. With one they come at random steps, and some are aborted at random;
    the same seed makes the same plans, so every rank of a group can drive itself.
    """
    scheduler = Scheduler(**LIMITS | limits)
    rng = random.Random(seed)
    coming = list(reversed(requests))
    outputs: dict[int, list[int]] = {submit.request_id: [] for submit in requests}
    while True:
        while coming and (seed is None or rng.random() < 0.4):
            scheduler.submit(coming.pop())
        if seed is not None and rng.random() < 0.01:
            scheduler.abort(rng.choice(requests).request_id)
        plan = scheduler.plan()
        if plan is not None:
            scheduler.commit(engine.execute(plan))
        for report in scheduler.take_reports():
            assert report.finish != "error", report.message
            outputs[report.request_id] += report.token_ids
        if plan is None and not coming:
            forget(engine)
            return list(outputs.values())


def forget(engine: Engine) -> None:
    """Empty the slots that the next plan of this scheduler would have emptied."""
    for slot in list(getattr(engine, "slots", ())):
        engine._release(slot)
