"""What sharing an engine costs and saves: `python -m benchmarks.serving [--shape NAME] [--json FILE]`.

A neuron with a model of random weights on the CPU, and one client of its protocol.

* joining: the time between two tokens of 8 streams, undisturbed and while a prompt of 16,384 tokens joins.
  The streams grow meanwhile, so what they are used to is told before and after.
* conversation: 20 turns of an agent. Each turn sends the whole history again; some are sent once more with a
  salt of their own, with which nothing is shared. At last another one begins with the same instructions.

With `--shape hybrid` (Qwen3.5: three of four layers keep a state) the conversation grows to 20,000 tokens:
`python -m benchmarks.serving --shape hybrid --parts conversation`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
import timeit
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM

from ipc.client import NeuronClient
from ipc.messages.replies import Cancelled, Delta, Failed, Finished
from ipc.messages.requests import Generate, Load
from ipc.messages.sampling import Sampling
from tests.neuron.harness import ROOT, Neuron
from workers.cache.state import HostStates, StateCache
from workers.checkpoints.caches import num_states, state_bytes
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE
from workers.step.plan import StateMove

SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}
SHAPES = {
    "small": SMALL,
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "hybrid": SMALL,
}
DELTA = {  # of the hybrid's layers with a state
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
SEQUENCES = 16  # at once, of the model
STREAMS = 8
ALONE = 4.0  # seconds in which the streams are looked at before
JOINING = 16_384  # tokens of the prompt that joins
TURNS = 20
PATIENCE = 1800.0  # seconds for one answer


@dataclass(frozen=True)
class Chat:
    """Of an agent, in tokens."""

    system: int  # before the first turn: instructions, tools and files
    turn: int  # that a turn adds: a tool's output
    answer: int
    recomputed: tuple[int, ...] = tuple(range(1, TURNS + 1))  # turns that are sent without the cache, too


LONG = Chat(12_288, 336, 48, recomputed=(2, TURNS))
SHORT = Chat(2048, 256, 48)


def write_model(folder: Path, shape: str) -> None:
    """Random weights in that shape, with the bundled demo's tokenizer."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    heads = SHAPES[shape]["num_attention_heads"]
    sizes = SHAPES[shape] | {
        "vocab_size": 32_768,
        "num_key_value_heads": heads // 2,
        "head_dim": 128 if heads > 4 else 64,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32_768,
        "dtype": "bfloat16",
    }
    if shape == "hybrid":
        model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**sizes, **DELTA))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    model.save_pretrained(folder)
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


@dataclass(frozen=True)
class Turn:
    """As it was answered."""

    prompt: int  # tokens
    cached: int  # of them, that were not computed again
    first_token: float  # seconds until it came

    @classmethod
    async def of(cls, client: NeuronClient, name: str, asked: Generate) -> tuple[Self, list[int]]:
        """Send it and say how it went; returns the answer, too."""
        began = time.perf_counter()
        stream = Stream(client, asked)
        usage = (await stream.end()).usage
        turn = cls(usage.prompt_tokens, usage.cached_tokens, stream.times[0] - began)
        print(
            f"{name}: {turn.prompt:,} tokens, {turn.share:.1%} reused, {turn.first_token:.2f} s", flush=True
        )
        return turn, stream.ids

    @property
    def share(self) -> float:
        return self.cached / self.prompt


async def conversation(client: NeuronClient, chat: Chat) -> dict[str, dict[str, Turn]]:
    """Its turns by their number, those that were computed anew, and the first one of another conversation."""
    system = prompt(7, chat.system)
    history, sent, found = system, {}, {"cached": {}, "recomputed": {}}
    for number in range(1, TURNS + 1):
        sent[number] = history + prompt(1000 + number, chat.turn)
        asked = request(sent[number], chat.answer, "shared")
        found["cached"][number], answer = await Turn.of(client, f"turn {number}", asked)
        history = sent[number] + answer
    asked = request(system + prompt(5000, chat.turn), chat.answer, "shared")
    found["cached"]["another"], _ = await Turn.of(client, "another conversation", asked)
    for number in chat.recomputed:
        asked = request(sent[number], 1, f"turn {number}")
        found["recomputed"][number], _ = await Turn.of(client, f"turn {number} without the cache", asked)
    return found


async def measure(endpoint: str, parts: list[str], chat: Chat) -> dict[str, dict]:
    client = NeuronClient(endpoint)
    client.start()
    try:
        await client.ask(Load(id=0, model="benchmark"), PATIENCE)
        results = {}
        if "joining" in parts:
            results["undisturbed"] = await joining(client, disturbed=False)
            results["while a prompt joins"] = await joining(client, disturbed=True)
        if "conversation" in parts:
            results |= await conversation(client, chat)
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
    table = Table("turn", "tokens", "reused", "first token, s", "without the cache", "ratio")
    for name, turn in results["cached"].items():
        row = [str(name), f"{turn.prompt:,}", f"{turn.share:.1%}", f"{turn.first_token:.3f}"]
        if (anew := results["recomputed"].get(name)) is not None:
            row += [f"{anew.first_token:.3f}", f"{anew.first_token / turn.first_token:.1f}"]
        table.add_row(*row)
    Console().print(table)
    turns = [turn for name, turn in results["cached"].items() if name != "another"]
    share = sum(turn.cached for turn in turns) / sum(turn.prompt for turn in turns)
    middle = statistics.median(turn.first_token for turn in turns)
    print(
        f"{share:.1%} of all {len(turns)} prompts was reused; a first token took {middle:.3f} s in the middle"
    )


def measure_states(card: ModelCard, host_memory: int) -> dict[str, float]:
    """Bytes of the states that a worker keeps, and seconds to copy one to the host's memory and back.

    Args:
        host_memory: bytes, as `host_state_memory` of the configuration.
    """
    groups = card.cache_groups(WHOLE)
    size = state_bytes(groups)
    number, places = num_states(groups, SEQUENCES), host_memory // size
    cache = StateCache(groups[-1].layers, card.config.state, states=number, device=torch.device("cpu"))
    found = {
        "bytes": size,
        "tokens": size / sum(group.bytes_per_token for group in groups),
        "number": number,
        "nbytes": cache.nbytes,
    }
    if places:
        host = HostStates(cache, places)
        moves = [
            StateMove(place % number, place, leaves) for place in range(places) for leaves in (True, False)
        ]
        took = [timeit.timeit(lambda: host.move(moves), number=1) for _ in range(5)]
        found |= {"places": places, "host_nbytes": host.nbytes, "seconds": min(took) / places}
    return found


def show_states(states: dict[str, float]) -> None:
    title = f"states of {states['bytes'] / 1e6:.2f} MB, keys and values of {states['tokens']:,.0f} tokens"
    table = Table(title, "number", "MB")
    table.add_row(f"on the device, for {SEQUENCES} sequences", f"{states['number']}", mb(states["nbytes"]))
    if "places" in states:
        table.add_row("in the host's memory", f"{states['places']}", mb(states["host_nbytes"]))
    Console().print(table)
    if "places" in states:
        print(f"to go there and come back takes one {states['seconds'] * 1000:.2f} ms on this machine")


def mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


PARTS = {"joining": show_joining, "conversation": show_conversation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument(
        "--host-states",
        type=int,
        default=64,
        metavar="MIB",
        help="of the host, for states of the hybrid (%(default)s)",
    )
    options = parser.parse_args()
    hybrid = options.shape == "hybrid"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", options.shape)
        model = {"id": "benchmark", "path": str(folder / "model"), "max_sequences": SEQUENCES}
        if hybrid:
            model["host_state_memory"] = options.host_states << 20
        with Neuron(folder / "neuron", models=[model]) as neuron:
            results = asyncio.run(measure(neuron.endpoint, options.parts, LONG if hybrid else SHORT))
        if hybrid:
            results["states"] = measure_states(read_card(folder / "model"), options.host_states << 20)
    for part in options.parts:
        PARTS[part](results)
    if hybrid:
        show_states(results["states"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main()
