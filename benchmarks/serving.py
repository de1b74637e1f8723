"""What sharing an engine costs and saves: `python -m benchmarks.serving [--shape 0.6b] [--json FILE]`.

A neuron with a model of random weights on the CPU, and one client of its protocol.

* joining: the time between two tokens of 8 streams, undisturbed and while a prompt of 16,384 tokens joins.
  The streams grow meanwhile, so what they are used to is told before and after.
* conversation: 20 turns of an agent. Each turn sends the whole history again, with the cache of prefixes, and
  with a salt of its own, with which nothing is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from ipc.client import NeuronClient
from ipc.messages import Cancelled, Delta, Failed, Finished, Generate, Load, Sampling
from tests.neuron.harness import ROOT, Neuron

SHAPES = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4},
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
}
STREAMS = 8
ALONE = 4.0  # seconds in which the streams are looked at before
JOINING = 16_384  # tokens of the prompt that joins
TURNS = 20
SYSTEM = 2048  # tokens before the first turn: instructions and tools
TURN = 256  # tokens that a turn adds: a tool's output
ANSWER = 48  # tokens of each answer
PATIENCE = 1800.0  # seconds for one answer


def write_model(folder: Path, shape: str) -> None:
    """Random weights in that shape, with the bundled demo's tokenizer."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    heads = SHAPES[shape]["num_attention_heads"]
    config = Qwen3Config(
        **SHAPES[shape],
        vocab_size=32_768,
        num_key_value_heads=heads // 2,
        head_dim=128 if heads > 4 else 64,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        dtype="bfloat16",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "neuron" / "demo" / name, folder)


def prompt(seed: int, tokens: int) -> list[int]:
    """Token ids that no other seed shares."""
    return [(seed * 7919 + i * 31) % 600 for i in range(tokens)]


def request(ids: list[int], max_tokens: int, salt: str = "") -> Generate:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Generate(
        id=0,
        model="benchmark",
        prompt=ids,
        sampling=sampling,
        stream=True,
        return_token_ids=True,
        cache_salt=salt,
    )


class Stream:
    """An answer as it comes: when each token came, and which ones."""

    def __init__(self, client: NeuronClient, asked: Generate) -> None:
        self.times: list[float] = []
        self.ids: list[int] = []
        self.call = client.open(asked)

    async def end(self) -> Finished | None:
        """Take all of it; None when it was cancelled."""
        while True:
            for reply in await self.call.take(PATIENCE):
                if isinstance(reply, Delta):
                    self.times += [time.perf_counter()] * reply.tokens
                    self.ids += reply.token_ids
                elif isinstance(reply, Finished):
                    return reply
                elif isinstance(reply, Cancelled):
                    return None
                elif isinstance(reply, Failed):
                    raise reply.error()


async def joining(client: NeuronClient, disturbed: bool) -> dict[str, float]:
    """Milliseconds between the tokens of the streams: before, while the prompt is there, and after."""
    streams = [Stream(client, request(prompt(i, 64), 15_000, f"{disturbed} {i}")) for i in range(STREAMS)]
    ends = [asyncio.create_task(stream.end()) for stream in streams]
    await asyncio.sleep(ALONE)
    joined = time.perf_counter()
    if disturbed:
        await Stream(client, request(prompt(99, JOINING), 1)).end()
    else:
        await asyncio.sleep(ALONE)
    left = time.perf_counter()
    await asyncio.sleep(ALONE)
    for stream in streams:
        stream.call.cancel()
    await asyncio.gather(*ends)
    before, then, after = [], [], []
    for stream in streams:
        for first, second in zip(stream.times[1:], stream.times[2:], strict=False):
            gaps = before if second < joined else then if first < left else after
            gaps.append((second - first) * 1000)
    return {
        "seconds": left - joined,
        "before": statistics.median(before),
        "median": statistics.median(then),
        "p99": statistics.quantiles(then, n=100)[98],
        "longest": max(then),
        "after": statistics.median(after),  # contexts are longer by then
    }


async def conversation(client: NeuronClient, shared: bool) -> dict[str, object]:
    """Seconds to the first token of each turn, and how much of all prompts came from the cache."""
    history, first, prompt_tokens, cached = prompt(7, SYSTEM), [], 0, 0
    for turn in range(TURNS):
        history += prompt(1000 + turn, TURN)
        salt = "shared" if shared else f"turn {turn}"
        began = time.perf_counter()
        stream = Stream(client, request(history, ANSWER, salt))
        finished = await stream.end()
        first.append(stream.times[0] - began)
        history += stream.ids
        prompt_tokens += finished.usage.prompt_tokens
        cached += finished.usage.cached_tokens
    return {"first_token": first, "hit_rate": cached / prompt_tokens}


async def measure(endpoint: str, parts: list[str]) -> dict[str, dict]:
    client = NeuronClient(endpoint)
    client.start()
    try:
        await client.ask(Load(id=0, model="benchmark"), PATIENCE)
        results = {}
        if "joining" in parts:
            results["undisturbed"] = await joining(client, disturbed=False)
            results["while a prompt joins"] = await joining(client, disturbed=True)
        if "conversation" in parts:
            results["cached"] = await conversation(client, shared=True)
            results["recomputed"] = await conversation(client, shared=False)
        return results
    finally:
        client.close()


def show_joining(results: dict[str, dict]) -> None:
    table = Table(f"{STREAMS} streams, ms", "before", "then", "p99", "longest", "after", "longest/after")
    for name in ("undisturbed", "while a prompt joins"):
        row = results[name]
        values = [f"{row[key]:.1f}" for key in ("before", "median", "p99", "longest", "after")]
        table.add_row(name, *values, f"{row['longest'] / row['after']:.2f}")
    Console().print(table)
    seconds = results["while a prompt joins"]["seconds"]
    Console().print(f"the prompt of {JOINING:,} tokens took {seconds:.1f} s beside them")


def show_conversation(results: dict[str, dict]) -> None:
    table = Table(f"{TURNS} turns, seconds to the first token", "first", "median", "last", "from the cache")
    for name in ("cached", "recomputed"):
        row = results[name]
        values = [row["first_token"][0], statistics.median(row["first_token"]), row["first_token"][-1]]
        table.add_row(name, *(f"{value:.3f}" for value in values), f"{row['hit_rate']:.0%}")
    Console().print(table)


PARTS = {"joining": show_joining, "conversation": show_conversation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", options.shape)
        model = {"id": "benchmark", "path": str(folder / "model"), "max_sequences": 16}
        with Neuron(folder / "neuron", models=[model]) as neuron:
            results = asyncio.run(measure(neuron.endpoint, options.parts))
    for part in options.parts:
        PARTS[part](results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
