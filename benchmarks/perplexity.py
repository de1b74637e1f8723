"""What quantisation costs: `python -m benchmarks.perplexity MODEL [--text FILE] [--dtype float32]`.

MODEL is a folder of plain weights, or a GGUF file, of which a plain copy in float32 is made first. That is
served as it is and under every quantisation that is offered; what comes out is how probable it finds a text,
against how probable it finds it unquantised. In float32, so that what differs is the weights alone.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from array import array
from pathlib import Path

import torch
from safetensors.torch import save_file

from ipc.worker_messages import RingHandle, SamplingParams, Submit, WorkerSpec
from neuron.text.tokenizer import TextTokenizer
from workers.checkpoints.blocks import QUANTIZATIONS
from workers.checkpoints.card import read_card
from workers.checkpoints.gguf import checkpoint as gguf
from workers.execution.model_runner import ModelRunner
from workers.scheduling.scheduler import Scheduler
from workers.weights.loader import Shard, Slice, WeightFiles

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
    nowhere = RingHandle(memory_fd=-1, data_fd=-1, space_fd=-1)
    limits = {"context_length": len(tokens) + 1, "max_sequences": 1, "max_step_tokens": STEP}
    usual = {"device": "cpu", "threads": 2, "dtype": "float32", "kv_pages": len(tokens)}
    order = WorkerSpec(
        **{"model": "benchmark", "engine": "transformer", "epoch": 1, "rank": 0, "world_size": 1},
        **{"reports": nowhere, "heartbeat_fd": -1, "quantization": quantization},
        **limits | usual | spec,
    )
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
        for report in scheduler.take_reports():
            assert report.finish != "error", report.message
            finish = report.finish
            told += [each.logprob for each in report.prompt_logprobs]
    runner.close()
    assert len(told) == len(tokens) - 1
    return math.exp(-sum(told) / len(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT, help="its first 4,000 characters are read")
    parser.add_argument("--dtype", default="float32", help="that is computed in")
    options = parser.parse_args()
    card = read_card(options.model)
    tokenizer = TextTokenizer(card.tokenizer_file, vocabulary_size=card.config.vocab_size, shown=())
    tokens = tokenizer.encode(options.text.read_text()[:CHARACTERS], special=True)
    with tempfile.TemporaryDirectory() as name:
        if options.model.is_file():
            write_plain(options.model, Path(name))
        plain = Path(name) if options.model.is_file() else options.model
        runs = [("plain", plain, None), *((each, plain, each) for each in QUANTIZATIONS)]
        if options.model.is_file():
            runs.append(("as stored", options.model, None))
        print(f"| {options.model.name}, {len(tokens)} tokens | MB | perplexity | loss |\n|---|---|---|---|")
        first = 0.0
        for what, path, quantization in runs:
            found = perplexity(path, tokens, quantization, dtype=options.dtype)
            first = first or found
            [size] = read_card(path).bytes_per_rank(1, "bfloat16", quantization)
            print(f"| {what} | {size / 1e6:,.0f} | {found:.4f} | {found / first - 1:+.3%} |", flush=True)


if __name__ == "__main__":
    main()
