"""What a step costs beside the model: `python -m benchmarks.scheduler [--json FILE]`.

First the scheduler alone (plan, observe, reports): in decode, and what a prompt of 16,384 tokens costs from
its submission to its first token, new and cached. Then the pages that a sequence of 32,768 tokens holds where
some layers have windows. Then a simulated worker at full speed, through its command and report rings:
scheduling, engine, encoding, and the reader on this side.
"""

from __future__ import annotations

import argparse
import json
import time
from array import array
from pathlib import Path

from ipc.worker_messages import CacheGroup, SamplingParams, Submit
from tests.workers.harness import Workers
from workers.scheduling.scheduler import Scheduler
from workers.step.engine import StepResult

FULL = CacheGroup(kind="full", layers=[0])
WINDOW = CacheGroup(kind="window", layers=[0], window=1024)
KINDS = {  # groups of layers, each with as many as the others
    "full": [FULL],
    "window of 1,024": [WINDOW],
    "1 full, 5 windows": [FULL, *[WINDOW] * 5],
    "6 full": [FULL] * 6,
}
REPEATS = 5  # of which the best counts: on a shared machine the others measure the neighbours


def scheduler_step(sequences: int, steps: int = 300) -> float:
    """Seconds of one decode step of that many sequences."""
    scheduler = Scheduler(
        max_sequences=sequences, max_step_tokens=8192, context_length=4096, kv_pages=1 << 16
    )
    prompt = array("I", [5] * 30).tobytes()
    for request_id in range(sequences):
        scheduler.submit(Submit(request_id, prompt, 4000, SamplingParams(0.0, stop_ids=[2])))
    while scheduler.statistics()["waiting"]:
        plan = scheduler.plan()
        scheduler.observe(StepResult([7] * len(plan.scheduled)))
    scheduler.take_reports()
    sampled = [7] * sequences
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(steps):
            scheduler.plan()
            scheduler.observe(StepResult(sampled))
            scheduler.take_reports()
        best = min(best, (time.perf_counter() - started) / steps)
    return best


def admission(cached: bool, running: int = 255, length: int = 16_384) -> tuple[float, float]:
    """(seconds for a prompt of `length` tokens in one step, seconds of the same step without it)."""
    scheduler = Scheduler(
        max_sequences=256, max_step_tokens=1 << 15, context_length=1 << 15, kv_pages=1 << 16
    )
    for request_id in range(running):
        prompt = array("I", [request_id] * 30).tobytes()
        scheduler.submit(Submit(request_id, prompt, 4000, SamplingParams(0.0, stop_ids=[2])))
    joined, alone = float("inf"), float("inf")
    for repeat in range(2 * REPEATS):
        prompt = array("I", range(0 if cached else repeat, length + (0 if cached else repeat))).tobytes()
        for submits in (True, False):
            started = time.perf_counter()
            if submits:
                scheduler.submit(Submit(1_000 + repeat, prompt, 1))
            plan = scheduler.plan()
            scheduler.observe(StepResult([7] * len(plan.scheduled)))
            scheduler.take_reports()
            scheduler.take_page_news()
            seconds = time.perf_counter() - started
            if submits and repeat > 1:
                joined = min(joined, seconds)
            elif not submits:
                alone = min(alone, seconds)
    return joined, alone


def pages_held(caches: list[CacheGroup], length: int = 32_768, prompt: int = 16_384) -> tuple[int, float]:
    """(most pages that a sequence of `length` tokens held in decode, seconds of a step of it)."""
    scheduler = Scheduler(
        max_sequences=1, max_step_tokens=512, context_length=length, kv_pages=1 << 16, caches=caches
    )
    scheduler.submit(Submit(1, array("I", range(prompt)).tobytes(), length - prompt))
    total, most, steps, began = scheduler.statistics()["pages_free"], 0, 0, 0.0
    while scheduler.plan() is not None:
        if scheduler.decode_tokens:
            began = began or time.perf_counter()
            steps += 1
            most = max(most, total - scheduler.statistics()["pages_free"])
        samples = scheduler.decode_tokens or not scheduler.prefilling
        scheduler.observe(StepResult([7] if samples else []))
        scheduler.take_reports()
        scheduler.take_page_news()
    return most, (time.perf_counter() - began) / steps


def worker_rate(sequences: int, world_size: int, tokens: int) -> tuple[float, float]:
    """(steps/s, tokens/s) of a simulated worker that answers `sequences` requests at once."""
    best = (0.0, 0.0)
    with Workers(world_size=world_size, max_sequences=sequences, kv_pages=1 << 16) as workers:
        workers.ready()
        for repeat in range(REPEATS):
            first_step = len(workers.steps)
            started = time.perf_counter()
            for number in range(sequences):
                workers.submit(repeat * sequences + number, 5, tokens)
            workers.collect(*range(repeat * sequences, (repeat + 1) * sequences))
            seconds = time.perf_counter() - started
            best = max(best, ((len(workers.steps) - first_step) / seconds, sequences * tokens / seconds))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, float | str]]] = {
        "scheduler": [],
        "admission": [],
        "caches": [],
        "worker": [],
    }
    print("scheduler alone, decode\n sequences    µs/step")
    for sequences in (1, 10, 32, 256):
        seconds = scheduler_step(sequences)
        figures["scheduler"].append({"sequences": sequences, "step_seconds": seconds})
        print(f"{sequences:10} {seconds * 1e6:10.1f}", flush=True)
    print(
        "\nscheduler alone, a prompt of 16,384 tokens joins 255 in decode\n   prompt    µs/step    without it"
    )
    for name, cached in (("new", False), ("cached", True)):
        joined, alone = admission(cached)
        figures["admission"].append({"cached": cached, "step_seconds": joined, "without_seconds": alone})
        print(f"{name:>9} {joined * 1e6:10.1f} {alone * 1e6:15.1f}", flush=True)
    print("\npages of one sequence of 32,768 tokens\n              layers      pages    µs/step")
    for name, caches in KINDS.items():
        pages, seconds = pages_held(caches)
        figures["caches"].append({"layers": name, "pages": pages, "step_seconds": seconds})
        print(f"{name:>20} {pages:10} {seconds * 1e6:10.1f}", flush=True)
    print("\nsimulated worker at full speed, through its rings\n sequences  ranks    steps/s   tokens/s")
    for sequences, world_size, tokens in (
        (1, 1, 2000),
        (10, 1, 2000),
        (32, 1, 1000),
        (256, 1, 200),
        (10, 2, 500),
    ):
        steps, rate = worker_rate(sequences, world_size, tokens)
        figures["worker"].append(
            {
                "sequences": sequences,
                "ranks": world_size,
                "steps_per_second": steps,
                "tokens_per_second": rate,
            }
        )
        print(f"{sequences:10} {world_size:6} {steps:10.0f} {rate:10.0f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
