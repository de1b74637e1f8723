"""Tokens per second beside transformers and llama.cpp: `python -m benchmarks.engine [--peer PYTHON]`.

Random weights in the shape of Qwen3-0.6B on the CPU, in bfloat16, and beside llama.cpp's Q8_0 in int8, too.
All have the same weights and number of threads, and compute in turn, so that a busy moment of the machine
hits all. PYTHON is that of an environment with llama-cpp-python; without it there is transformers alone.

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
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import gguf
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, Qwen3Config
from transformers.utils import logging as transformers_logging

from benchmarks.gguf import LlamaCpp, write_q8
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
ALONE, EIGHT = "decode alone", "decode 8 at once"
MEASURES = {"prefill 512": PREFILL, ALONE: 1, EIGHT: 8}  # tokens a step
OURS, OURS_INT8 = "cortex", "cortex int8"
TRANSFORMERS, LLAMA, LLAMA_Q8 = "transformers", "llama.cpp", "llama.cpp Q8_0"
PAIRS = ((OURS, TRANSFORMERS), (OURS, LLAMA), (OURS_INT8, LLAMA_Q8))  # of as many bytes a weight


class Engine(Protocol):
    """Greedy, and it keeps one batch in decode for each of the sizes in MEASURES."""

    def prefill(self, tokens: int) -> None:
        """A prompt by itself, to its first token."""

    def decode(self, sequences: int) -> None:
        """One token more for each sequence of that batch."""


class Cortex:
    def __init__(self, folder: Path, threads: int, steps: int, quantization: str | None = None) -> None:
        self.pages = pages_for(CONTEXT + steps)  # of each sequence
        self.runner = ModelRunner(
            spec_of(
                device="cpu",
                quantization=quantization,
                threads=threads,
                context_length=4096,
                max_sequences=16,
                max_step_tokens=4096,
                kv_pages=pages_for(PREFILL) + 9 * self.pages,
            ),
            read_card(folder),
        )
        self.weight_bytes = self.runner.load(lambda fraction, message: None).memory.weights
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


class Transformers:
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


def write_gguf(folder: Path, path: Path) -> Path:
    """The same for llama.cpp, in the same type and without a vocabulary; returns `path`."""
    config = Qwen3Config.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        known = names.get_name(name, (".weight",))
        if tensor.dim() == 1:
            writer.add_tensor(known, tensor.float().numpy())
        else:
            kept = tensor.view(torch.uint8).numpy()
            writer.add_tensor(known, kept, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--layers", type=int, default=SHAPE.num_hidden_layers, help="fewer, to try the program"
    )
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    arguments = parser.parse_args()

    transformers_logging.disable_progress_bar()
    threads, steps = arguments.threads, (arguments.rounds + 1) * STEPS
    shape = Qwen3Config(**{**SHAPE.to_dict(), "num_hidden_layers": arguments.layers, "layer_types": None})
    with ExitStack() as ended, tempfile.TemporaryDirectory(prefix="cortex-benchmark-") as name:
        folder = Path(name)
        weight_bytes = write_weights(folder, shape)
        ours = {OURS: Cortex(folder, threads, steps)}
        theirs: dict[str, Engine] = {TRANSFORMERS: Transformers(folder, threads, steps)}
        if arguments.peer:
            ours[OURS_INT8] = Cortex(folder, threads, steps, "int8")
            plain, q8 = write_gguf(folder, folder / "plain.gguf"), folder / "q8_0.gguf"
            write_q8(arguments.peer, plain, q8)
            for key, path in ((LLAMA, plain), (LLAMA_Q8, q8)):
                theirs[key] = peer = LlamaCpp(arguments.peer, path, threads)
                ended.callback(peer.close)
        seconds = measure({**ours, **theirs}, arguments.rounds, weight_bytes)
    rate = weight_bytes / seconds.pop("memory")["read"]
    results = {
        name: {key: tokens / result[key] for key, tokens in MEASURES.items()}
        for name, result in seconds.items()
    }

    table = Table(
        title=f"tokens/s, Qwen3-0.6B in bfloat16 or int8, {threads} threads, torch {torch.__version__}"
    )
    for heading in ("", *MEASURES):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in results.items():
        table.add_row(name, *(f"{value:,.1f}" for value in result.values()))
    table.add_section()
    for mine, peer in PAIRS:
        if peer in results:
            ratios = (results[mine][key] / results[peer][key] for key in MEASURES)
            table.add_row(f"{mine} / {peer}", *(f"{ratio:.2f}" for ratio in ratios))
    for mine, peer in PAIRS[1:]:
        if peer in results:
            ratio = results[mine][EIGHT] / results[peer][ALONE]
            table.add_row(f"8 of {mine} / 1 of {peer}", "", "", f"{ratio:.2f}")
    table.add_section()
    for name, engine in ours.items():
        share = results[name][ALONE] * engine.weight_bytes / rate
        table.add_row(f"{name}, of memory's {rate / 1e9:.1f} GB/s", "", f"{share:.0%}", "")
    Console(width=120).print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {"threads": threads, "bytes_per_second": rate, "tokens_per_second": results}, file, indent=2
            )


if __name__ == "__main__":
    main()
