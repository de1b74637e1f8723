"""Tokens per second of the engine beside transformers': `python -m benchmarks.engine [--json PATH]`.

Random weights in the shape of Qwen3-0.6B, bfloat16, on the CPU. Both read the same files and run in the same
process with the same number of threads, in turn, so that a busy moment of the machine hits both.

* prefill: a prompt of 512 tokens and its first token.
* decode: the next token after 128, of one sequence alone and of 8 at once.
* memory: how fast the weights' bytes can be read at all; no decode step is faster than that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, Qwen3Config
from transformers.utils import logging as transformers_logging

from benchmarks.one_rank import spec_of
from ipc.worker_messages import SamplingParams
from workers.checkpoints.reading import read_card
from workers.execution.model_runner import ModelRunner
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

SHAPE = Qwen3Config(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
    dtype="bfloat16",
)
PREFILL = 512
CONTEXT = 128  # tokens before the first decode step
STEPS = 8  # decode steps in a row
MEASURES = {"prefill 512": PREFILL, "decode alone": 1, "decode 8 at once": 8}  # tokens a step


class Engine(ABC):
    """Greedy, and it keeps one batch in decode for each of the sizes in MEASURES."""

    @abstractmethod
    def prefill(self, tokens: int) -> None:
        """A prompt by itself, to its first token."""

    @abstractmethod
    def decode(self, sequences: int) -> None:
        """One token more for each sequence of that batch."""


class Cortex(Engine):
    def __init__(self, folder: Path, threads: int, steps: int) -> None:
        self.pages = pages_for(CONTEXT + steps)  # of each sequence
        self.runner = ModelRunner(
            spec_of(
                device="cpu",
                threads=threads,
                context_length=4096,
                max_sequences=16,
                max_step_tokens=4096,
                kv_pages=pages_for(PREFILL) + 9 * self.pages,
            ),
            read_card(folder),
        )
        self.runner.load(lambda fraction, message: None)
        self.slots = {1: range(1, 2), 8: range(2, 10)}
        for slot in (slot for slots in self.slots.values() for slot in slots):
            start = pages_for(PREFILL) + (slot - 1) * self.pages
            self._prompt(slot, CONTEXT, range(start, start + self.pages))

    def _prompt(self, slot: int, tokens: int, pages: range) -> None:
        prompt = array("I", range(slot, slot + tokens)).tobytes()
        new = NewSequence(slot, tokens, prompt, SamplingParams(0.0))
        released = [slot] if slot in self.runner.slots else []
        self.runner.execute(StepPlan(1, released, [new], [Scheduled(slot, tokens, [list(pages)])]))

    def prefill(self, tokens: int) -> None:
        self._prompt(0, tokens, range(pages_for(tokens)))

    def decode(self, sequences: int) -> None:
        self.runner.execute(StepPlan(1, [], [], [Scheduled(slot, 1) for slot in self.slots[sequences]]))


class Transformers(Engine):
    def __init__(self, folder: Path, threads: int, steps: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.state = {sequences: self._prompt(sequences, CONTEXT) for sequences in (1, 8)}

    @torch.inference_mode()
    def _prompt(self, sequences: int, tokens: int) -> tuple[DynamicCache, torch.Tensor]:
        ids = torch.arange(tokens).repeat(sequences, 1)
        cache = DynamicCache(config=self.model.config)
        logits = self.model(ids, past_key_values=cache, logits_to_keep=1).logits
        return cache, logits[:, -1].argmax(dim=-1, keepdim=True)

    def prefill(self, tokens: int) -> None:
        self._prompt(1, tokens)

    @torch.inference_mode()
    def decode(self, sequences: int) -> None:
        cache, last = self.state[sequences]
        logits = self.model(last, past_key_values=cache, logits_to_keep=1).logits
        self.state[sequences] = cache, logits[:, -1].argmax(dim=-1, keepdim=True)


def write_weights(folder: Path, shape: PretrainedConfig = SHAPE) -> int:
    """Save a random model; returns its bytes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return sum(parameter.nbytes for parameter in model.parameters())


def measure(engines: dict[str, Engine], rounds: int, weight_bytes: int) -> dict[str, dict[str, float]]:
    """Seconds of a step, the median of all: by engine and measure."""
    memory = torch.ones(weight_bytes // 4)
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in (*engines, "memory")}
    for index in range(rounds + 1):  # the first warms up
        for name, engine in engines.items():
            for key, tokens in MEASURES.items():
                prefill = tokens == PREFILL
                times = [timed(engine.prefill if prefill else engine.decode, tokens)]
                times += [timed(engine.decode, tokens) for _ in range(0 if prefill else STEPS - 1)]
                seconds[name].setdefault(key, []).extend(times if index else [])
        seconds["memory"].setdefault("read", []).append(timed(memory.sum))
    return {
        name: {key: statistics.median(times) for key, times in result.items()}
        for name, result in seconds.items()
    }


def timed(function: Callable[..., object], *args: int) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    arguments = parser.parse_args()

    transformers_logging.disable_progress_bar()
    steps = (arguments.rounds + 1) * STEPS
    with tempfile.TemporaryDirectory(prefix="cortex-benchmark-") as name:
        weight_bytes = write_weights(Path(name))
        engines = {
            "cortex": Cortex(Path(name), arguments.threads, steps),
            "transformers": Transformers(Path(name), arguments.threads, steps),
        }
    seconds = measure(engines, arguments.rounds, weight_bytes)
    read = seconds.pop("memory")["read"]
    results = {
        name: {key: tokens / result[key] for key, tokens in MEASURES.items()}
        for name, result in seconds.items()
    }

    table = Table(
        title=f"tokens/s, Qwen3-0.6B in bfloat16, {arguments.threads} threads, torch {torch.__version__}"
    )
    for heading in ("", *MEASURES):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in results.items():
        table.add_row(name, *(f"{value:,.1f}" for value in result.values()))
    ratios = [ours / theirs for ours, theirs in zip(*(r.values() for r in results.values()), strict=True)]
    table.add_row("ratio", *(f"{ratio:.2f}" for ratio in ratios))
    limits = [tokens / read if tokens < PREFILL else None for tokens in MEASURES.values()]
    shown = (f"{limit:,.1f}" if limit else "" for limit in limits)
    table.add_row(f"memory's limit ({weight_bytes / read / 1e9:.1f} GB/s)", *shown)
    Console().print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            rates = {"threads": arguments.threads, "bytes_per_second": weight_bytes / read}
            json.dump({**rates, "tokens_per_second": results}, file, indent=2)


if __name__ == "__main__":
    main()
