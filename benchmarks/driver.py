"""An engine with random weights, fed step by step as a scheduler would, and timed."""

from __future__ import annotations

import json
import math
import statistics
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig

from benchmarks.quantised_models import DEVIATION, of_no_memory, sizes
from ipc.worker_messages import SamplingParams
from workers.execution.graphs import Kind
from workers.execution.model_runner import ModelRunner
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

GREEDY = SamplingParams(0.0)


def write_hollow(folder: Path, shape: PretrainedConfig) -> Path:
    """A model in bfloat16 whose tensors are a hole in a file, for `fill`; returns `folder`."""
    header, end = {}, 0
    for name, size in sizes(shape):
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    architecture = type(of_no_memory(shape)).__name__
    (folder / "config.json").write_text(json.dumps(shape.to_dict() | {"architectures": [architecture]}))
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return folder


def fill(runner: ModelRunner) -> None:
    """Random weights, as large as those of a trained model, and norms of one."""
    for shard in runner.model.parts():
        for piece in shard.pieces:
            piece.into.fill_(1.0) if piece.into.dim() == 1 else piece.into.normal_(std=DEVIATION)


class Driver:
    """Feeds prompts and decode steps to an engine.

    Args:
        runner: a `ModelRunner` with its pool.
        pages: of each sequence that decodes.
        params: how its tokens are chosen.
    """

    def __init__(self, runner: ModelRunner, pages: int, params: SamplingParams = GREEDY) -> None:
        self._runner = runner
        self._pages = pages
        self._params = params
        self._first = runner.spec.kv_pages - runner.spec.max_sequences * pages  # of those that decode

    def prompts(self, slots: Sequence[int], tokens: int, first: int = 0) -> None:
        """Prompts to their first tokens, in one step; their pages follow each other from `first` on."""
        runner, taken = self._runner, max(self._pages if first else 0, pages_for(tokens))
        ids = array("I", (number % 1000 for number in range(tokens))).tobytes()
        added = [NewSequence(slot, tokens, ids, self._params) for slot in slots]
        starts = range(first, first + taken * len(slots), taken)
        scheduled = [
            Scheduled(slot, tokens, self._tables(slot, range(start, start + taken)))
            for slot, start in zip(slots, starts, strict=True)
        ]
        runner.execute(StepPlan(1, [slot for slot in slots if slot in runner.slots], added, scheduled))

    def _tables(self, slot: int, pages: range) -> list[list[int]]:
        """Of each group of layers; a sequence has one state, which each step writes over."""
        groups = self._runner.groups
        return [[slot] * len(pages) if group.kind == "state" else [*pages] for group in groups]

    def begin(self, count: int, context: int) -> None:
        """Let so many sequences be in decode, and no others."""
        self._runner.empty()
        at_once = self._runner.spec.max_step_tokens // context
        for start in range(0, count, at_once):
            slots = range(start, min(count, start + at_once))
            self.prompts(slots, context, self._first + start * self._pages)

    def decode(self, count: int, steps: int, eager: bool = False) -> float:
        """Seconds from one step to the next, each with one token for each of the first `count`: the median.

        Args:
            eager: no graph is replayed, where there are any.
        """
        plan = StepPlan(1, [], [], [Scheduled(slot, 1) for slot in range(count)])
        if self._runner.graphs is not None:
            self._runner.graphs.paused = eager
        times, sent, began = [], [], time.perf_counter()
        for _ in range(steps + 1):
            if self._runner.in_flight:  # as the loop of a rank does it
                sent.append(self._runner.send(plan))
                if len(sent) == 1:
                    continue
                sent.pop(0).result()
            else:
                self._runner.execute(plan)
            now = time.perf_counter()
            times.append(now - began)
            began = now
        for each in sent:
            each.result()
        return statistics.median(times)

    def graph(self, count: int, steps: int) -> float | None:
        """Seconds that the graph of the last such step takes, with nothing between; None: it was none."""
        if (graphs := self._runner.graphs) is None:
            return None
        kind = Kind(graphs.rows(count), 0)  # greedy
        if graphs.replay(kind) is None:
            return None
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            graphs.replay(kind)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps
