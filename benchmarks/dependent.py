"""Decode with dependent launches and without: part `dependent` of `benchmarks.gpu`.

All ways are taken by turns in one process, each with graphs that were recorded for it, and the least median
of each counts. What they answer has to be equal to the bit, tokens and logarithms of probabilities: a kernel
that knew too early what another one leaves would show there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import msgspec

from benchmarks.driver import Driver
from ipc.worker_messages import SamplingParams
from workers.execution.model_runner import ModelRunner
from workers.kernels import launch
from workers.step.plan import Scheduled, StepPlan

ROUNDS = 3
WAYS = {"asks": (True, True), "dependent": (True, False), "without": (False, False)}  # `launch` has both
TOLD = SamplingParams(0.0, logprobs=20)


class Found(NamedTuple):
    """What decode steps of one sequence take.

    Attributes:
        seconds: from one step to the next: with dependent launches whose products ask for weights before they
            wait, with such that do not, and without.
        graph: the same of a graph with nothing between two of it; NaN where there is none.
        answers: how many unlike ones there are, all ways; and without dependent launches alone. 1 is right.
    """

    seconds: dict[str, float]
    graph: dict[str, float]
    answers: int
    answers_without: int


def compare(runner: ModelRunner, pages: int, context: int, steps: int) -> Found:
    """All ways with that engine, whose sequence has so many pages, and tokens before the first step."""
    driver, told = Driver(runner, pages), Driver(runner, pages, TOLD)
    took, graphs, answers = defaultdict(list), defaultdict(list), defaultdict(set)
    plan = StepPlan(1, [], [], [Scheduled(0, 1)])
    before = launch.dependent, launch.asks
    try:
        for way in (*WAYS,) * ROUNDS:
            launch.dependent, launch.asks = WAYS[way]
            if runner.graphs is not None:
                runner.graphs.release()
            told.begin(1, context)
            answers[way].add(msgspec.json.encode([runner.execute(plan) for _ in range(steps)]))
            driver.begin(1, context)
            took[way].append(driver.decode(1, steps))
            graphs[way].append(driver.graph(1, steps) or math.nan)
    finally:
        launch.dependent, launch.asks = before
    least = ({way: min(found) for way, found in each.items()} for each in (took, graphs))
    return Found(*least, len(set().union(*answers.values())), len(answers["without"]))
