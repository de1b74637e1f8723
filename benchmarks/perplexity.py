"""What quantisation costs: `python -m benchmarks.perplexity MODEL [--characters 1000] [--only q4 ...]`.

MODEL is a folder of plain weights, or a GGUF file, of which a plain copy in float32 is made first. That is
served as it is, under every quantisation that is offered, and with keys and values in 8 bits; what comes out
is how probable it finds a text, against how probable it finds it unquantised. In float32, so that no more
differs. A line comes as soon as it is known, and how far the next one is goes to stderr.

What was in blocks lies on their grid, and costs the same format nothing. With `--off-grid` the copy of a GGUF
file is in float16, each weight moved at random by up to half a step of 4 bits. With `--peer PYTHON`, one that
has llama-cpp-python, its quantiser makes Q4_0 and Q4_K_M of that copy, which are computed here as all others.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file

from benchmarks import off_grid
from benchmarks.one_rank import spec_of
from ipc.model_settings import KVCacheDtype
from ipc.worker_messages import SamplingParams, Submit
from neuron.text.tokenizer import TextTokenizer
from workers.checkpoints.blocks import QUANTIZATIONS
from workers.checkpoints.gguf import checkpoint as gguf
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE
from workers.execution.model_runner import ModelRunner
from workers.scheduling.scheduler import Scheduler
from workers.weights.loader import Shard, Slice, WeightFiles

PEER = Path(__file__).with_name("llama_cpp_peer.py")
PEERS = ("Q4_0", "Q4_K_M")
TEXT = Path(__file__).parents[1] / "LICENSE"
CHARACTERS = 4000
STEP = 512  # tokens


def write_plain(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file as a checkpoint in float32. Of its tokenizer that says nothing."""
    card = read_card(file)
    tensors = {name: torch.empty(tensor.shape) for name, tensor in card.tensors.items()}
    parts = [Shard([Slice(name, tuple(into.shape), into)]) for name, into in tensors.items()]
    WeightFiles(card).load(parts, lambda fraction: None)
    save_file(tensors, folder / "model.safetensors")
    config = gguf.read(file).config | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")


def perplexity(model: str | Path, tokens: list[int], quantization: str | None, **spec: object) -> float:
    """How many tokens it takes the next one to be among, in the geometric mean over `tokens`.

    Args:
        spec: of the worker, where it differs from one rank on the CPU in float32.
    """
    limits = {"context_length": len(tokens) + 1, "max_sequences": 1, "max_step_tokens": STEP}
    usual = {"device": "cpu", "threads": 2, "dtype": "float32", "kv_pages": len(tokens)}
    order = spec_of(**{"quantization": quantization} | limits | usual | spec)
    runner = ModelRunner(order, read_card(model))
    loaded = runner.load(lambda fraction, message: None)
    scheduler = Scheduler(**limits, kv_pages=loaded.kv_pages, caches=loaded.caches)
    scheduler.submit(
        Submit(0, array("I", tokens).tobytes(), 1, SamplingParams(temperature=0.0, prompt_logprobs=0))
    )
    told: list[float] = []
    finish = ""
    while not finish:
        if (plan := scheduler.plan()) is not None:
            scheduler.observe(runner.execute(plan))
        print(f"\r{len(told)} of {len(tokens) - 1} tokens ", end="", file=sys.stderr, flush=True)
        for report in scheduler.take_reports():
            assert report.finish != "error", report.details.message
            finish = report.finish
            told += [each.logprob for each in report.details.prompt_logprobs]
    print("\r", end="", file=sys.stderr)
    runner.close()
    assert len(told) == len(tokens) - 1
    return math.exp(-sum(told) / len(told))


def copies(options: argparse.Namespace, folder: Path) -> dict[str, tuple[Path, str | None]]:
    """What is to be computed, by its name: a model, and how it is quantised at load. First the plain one."""
    plain, stored = options.model, {}
    if options.off_grid:
        plain = folder / "plain.gguf"
        off_grid.write(options.model, plain)
    elif options.model.is_file():
        write_plain(options.model, folder)
        plain, stored = folder, {"as stored": (options.model, None)}
    for name in PEERS if options.peer else ():
        made = folder / f"{name}.gguf"
        subprocess.run([options.peer, PEER, plain, made, name], check=True)
        stored[f"llama.cpp's {name}"] = made, None
    return {"plain": (plain, None)} | {name: (plain, name) for name in options.only} | stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT, help="whose beginning is read")
    parser.add_argument("--characters", type=int, default=CHARACTERS, help="of that (%(default)s)")
    parser.add_argument("--only", nargs="*", default=QUANTIZATIONS, choices=QUANTIZATIONS)
    formats = get_args(KVCacheDtype)
    parser.add_argument("--keys", nargs="*", default=formats, choices=formats, help="and values, kept so")
    parser.add_argument(
        "--off-grid", action="store_true", help="move the weights of a GGUF file off its grid"
    )
    parser.add_argument("--peer", help="a Python with llama-cpp-python; with --off-grid")
    parser.add_argument("--dtype", default="float32", help="that is computed in")
    options = parser.parse_args()
    if options.off_grid and not options.model.is_file():
        parser.error(f"--off-grid is for a GGUF file, and {options.model} is none")
    if options.peer and not options.off_grid:
        parser.error("--peer takes the file that --off-grid makes")
    card = read_card(options.model)
    tokenizer = TextTokenizer(card.tokenizer_file, vocabulary_size=card.config.vocab_size, shown=())
    tokens = tokenizer.encode(options.text.read_text()[: options.characters], special=True)
    with tempfile.TemporaryDirectory() as folder:
        print(f"| {options.model.name}, {len(tokens)} tokens | MB | perplexity | loss |\n|---|---|---|---|")
        first = 0.0
        found = copies(options, Path(folder))
        runs = [(what, *copy, None) for what, copy in found.items()]
        if card.kept_whole is None:
            runs += [(f"keys and values in {kept}", *found["plain"], kept) for kept in options.keys]
        for what, path, quantization, kept in runs:
            spec = {"dtype": options.dtype, "kv_cache_dtype": kept}
            value = perplexity(path, tokens, quantization, **spec)
            first = first or value
            [size] = read_card(path).bytes_per_rank(ALONE, "bfloat16", quantization)
            print(f"| {what} | {size / 1e6:,.0f} | {value:.4f} | {value / first - 1:+.3%} |", flush=True)


if __name__ == "__main__":
    main()
