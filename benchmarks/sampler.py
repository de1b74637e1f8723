"""What choosing the tokens of a step costs: `python -m benchmarks.sampler [--json FILE] [--rounds N]`.

The vocabulary is Qwen's, 151,936 tokens, and the logits are peaked as a model's are, some rows more than
others: top-p 0.9 keeps fewer than 64 tokens of a quarter of them, and tens of thousands of another. Before
each step the logits are copied, since choosing uses them up, and the sequences are as they were; neither is
timed. Milliseconds of a step, the median of many, taken in turn:

* ours: `Sampler.sample`, with all that it does beside the draw.
* peer: what transformers does for the same settings: its processors and warpers, softmax and
  `torch.multinomial`, or the highest logit. It has no presence or frequency penalty and does without them.
* floor: to read the logits once.

The settings, of all rows at once:

* greedy: the highest logit.
* temperature: 1, and nothing is filtered.
* Qwen: its model card's, temperature 0.6, top-k 20, top-p 0.95.
* top-p: 0.9, alone.
* min-p: 0.05, alone.
* penalties: repetition, presence and frequency, over 400 tokens of prompt and 100 of output, and top-p 0.9.
* 20 logprobs: greedy, with the 20 most probable tokens and their log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ipc.worker_messages import SamplingParams
from workers.sampling.sampler import Sampler

VOCABULARY = 151_936
ROWS = (1, 32, 256)
PROMPT, OUTPUT = 400, 100  # tokens that are there already
STEPS = 32  # of one row in a round; fewer of more rows, at least one
SETTINGS = {
    "greedy": SamplingParams(0.0),
    "temperature": SamplingParams(1.0),
    "Qwen": SamplingParams(0.6, top_k=20, top_p=0.95),
    "top-p": SamplingParams(1.0, top_p=0.9),
    "min-p": SamplingParams(1.0, min_p=0.05),
    "penalties": SamplingParams(
        1.0, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2
    ),
    "20 logprobs": SamplingParams(0.0, logprobs=20),
}


def peaked(rows: int) -> Tensor:  # [rows, vocabulary]
    """Noise, over which a few tokens stand out."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (rows, 8), generator=generator)
    return logits.scatter_add_(1, tokens, 8 + 6 * torch.rand(rows, 8, generator=generator))


def ours(params: SamplingParams, written: Tensor) -> Callable[[Tensor], object]:
    sampler = Sampler(VOCABULARY)
    for slot, tokens in enumerate(written.tolist()):
        sampler.add(slot, msgspec.structs.replace(params, seed=slot), tokens[:PROMPT], tokens[PROMPT:])
    slots = list(range(len(written)))
    return lambda logits: sampler.sample(logits, slots)


def peer(params: SamplingParams, written: Tensor) -> Callable[[Tensor], object]:
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (0, 1):
        steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))

    def choose(logits: Tensor) -> object:
        scores = steps(written, logits)
        if params.temperature:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1).tolist()
        tokens = scores.argmax(dim=-1, keepdim=True)
        if params.logprobs is None:
            return tokens.tolist()
        logprobs = logits.log_softmax(dim=-1)
        values, ids = logprobs.topk(params.logprobs)
        return tokens.tolist(), logprobs.gather(1, tokens).tolist(), values.tolist(), ids.tolist()

    return choose


def floor(params: SamplingParams, written: Tensor) -> Callable[[Tensor], object]:
    return torch.max


def measure(rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, by settings and by who chooses."""
    original = peaked(rows)
    written = torch.randint(VOCABULARY, (rows, PROMPT + OUTPUT))
    results = {}
    for name, params in SETTINGS.items():
        choosers = {"ours": ours, "peer": peer, "floor": floor}
        milliseconds: dict[str, list[float]] = {who: [] for who in choosers}
        for index in range(rounds + 1):  # the first warms up
            for who, prepare in choosers.items():
                for _ in range(max(1, STEPS // rows) if index else 1):
                    choose, logits = prepare(params, written), original.clone()
                    began = time.perf_counter()
                    choose(logits)
                    if index:
                        milliseconds[who].append(1000 * (time.perf_counter() - began))
        results[name] = {who: statistics.median(times) for who, times in milliseconds.items()}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    with torch.inference_mode():
        for rows in ROWS:
            results[rows] = measure(rows, options.rounds)
            table = Table(title=f"milliseconds of a step, {rows} x {VOCABULARY:,}, {options.threads} threads")
            for heading in ("", "ours", "peer", "floor", "peer / ours", "ours / floor"):
                table.add_column(heading, justify="right" if heading else "left")
            for name, row in results[rows].items():
                ratios = row["peer"] / row["ours"], row["ours"] / row["floor"]
                table.add_row(
                    name, *(f"{value:,.3f}" for value in row.values()), *(f"{ratio:,.1f}" for ratio in ratios)
                )
            Console().print(table)
    if options.json:
        figures = {"vocabulary": VOCABULARY, "threads": options.threads, "milliseconds": results}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
