"""What a step costs beside the model: `python -m benchmarks.steps [--json PATH]`.

A real engine whose model answers with numbers that are there already, so what is left is what the engine does
in each decode step: the batch is put together, tokens are chosen and taken in. Milliseconds, the median of
many steps; the vocabulary is small, so choosing costs what its Python costs (benchmarks/sampler.py measures
it on large ones).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from array import array
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.one_rank import spec_of
from ipc.worker_messages import PAGE_SIZE, SamplingParams
from workers.checkpoints.reading import read_card
from workers.execution.model_runner import ModelRunner
from workers.step.plan import NewSequence, Scheduled, StepPlan

SHAPE = Qwen3Config(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    tie_word_embeddings=True,
)
CONTEXT = 993  # tokens before the first step: all but one in pages
PAGES = 40  # of each sequence
SEQUENCES = (1, 32, 256)
SETTINGS = {
    "greedy": SamplingParams(0.0),
    "temperature": SamplingParams(1.0),
    "top-k, top-p": SamplingParams(1.0, top_k=50, top_p=0.9),
    "penalties": SamplingParams(0.0, presence_penalty=0.5),
    "5 logprobs": SamplingParams(0.0, logprobs=5),
}


class Still:
    """A model that has thought already."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.all_logits = torch.randn(max(SEQUENCES), vocab_size)

    def __call__(self, *given: object, wanted: torch.Tensor | None = None) -> torch.Tensor:
        return self.all_logits

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def make_runner(folder: str) -> ModelRunner:
    Qwen3ForCausalLM(SHAPE).save_pretrained(folder)
    Path(folder, "tokenizer.json").write_text("{}")
    spec = spec_of(
        device="cpu",
        threads=1,
        context_length=4096,
        max_sequences=max(SEQUENCES),
        max_step_tokens=4096,
        kv_pages=max(SEQUENCES) * PAGES,
    )
    runner = ModelRunner(spec, read_card(folder))
    runner.load(lambda fraction, message: None)
    runner.model = Still(SHAPE.vocab_size)
    return runner


def measure(runner: ModelRunner, sequences: int, params: SamplingParams, steps: int) -> float:
    """Milliseconds of a step."""
    prompt = array("I", [i % 1024 for i in range(CONTEXT)]).tobytes()
    slots = range(sequences)
    released = [slot for slot in slots if slot in runner.slots]
    added = [
        NewSequence(slot, CONTEXT, prompt, params, tables=[_pages(slot)[: CONTEXT // PAGE_SIZE]])
        for slot in slots
    ]
    first = [Scheduled(slot, 1, [_pages(slot)[CONTEXT // PAGE_SIZE :]]) for slot in slots]
    runner.execute(StepPlan(1, released, added, first))
    plan = StepPlan(2, [], [], [Scheduled(slot, 1) for slot in slots])
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        runner.execute(plan)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def _pages(slot: int) -> list[int]:
    return list(range(slot * PAGES, (slot + 1) * PAGES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cortex-benchmark-") as folder:
        runner = make_runner(folder)
    results = {
        name: {count: measure(runner, count, params, arguments.steps) for count in SEQUENCES}
        for name, params in SETTINGS.items()
    }
    table = Table(title="milliseconds of a decode step beside the model, by number of sequences")
    for heading in ("", *map(str, SEQUENCES)):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in results.items():
        table.add_row(name, *(f"{value:.3f}" for value in result.values()))
    Console().print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
