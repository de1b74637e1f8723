"""A hybrid on two ranks as a client of its neuron has it: a part of `benchmarks.gpu`.

Its weights are a hole in a file: zeros, which are quantised, shared and multiplied as others are.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig

from benchmarks.driver import write_hollow
from benchmarks.roofline import of_each_token
from benchmarks.serving import PATIENCE, Stream, prompt, request
from ipc.client import NeuronClient
from ipc.messages.requests import Load, Unload
from neuron.catalogue.catalogue import DEMO_FOLDER
from tests.neuron.harness import Neuron
from workers.checkpoints.blocks import FORMATS
from workers.checkpoints.caches import state_bytes
from workers.checkpoints.card import ModelCard
from workers.checkpoints.families.llama import EMBEDDING
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import Split

RANKS = 2
SPLIT = Split.evenly(RANKS)
QUANTIZATION = "q6"
TOKENS = {"cpu": (64, 16), "cuda": (4096, 128)}  # of a prompt, and of the answer to it
# what another system published of a 27B in Q6_K on two RTX 5090
FLOORS = {"load": "86 s", "prefill": "850 tokens/s", "decode 1 at once": "35 to 46 tokens/s"}


class Row(NamedTuple):
    """What something took, and the fewest seconds that it could have."""

    name: str
    limit: float
    seconds: float
    rate: str


def rows(
    folder: Path, kind: str, shape: PretrainedConfig, read: float, multiply: float, copy: float
) -> Iterator[Row]:
    """Load it, load it again, and ask it once.

    Args:
        folder: for all files.
        kind: of the devices, "cpu" or "cuda".
        read: bytes that a device reads of its memory a second,
        multiply: operations in bfloat16 that it does,
        copy: and bytes that it gets from the host.
    """
    card = read_card(write_hollow(folder, shape))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_FOLDER / name, folder)
    model = {"id": "benchmark", "path": str(folder), "ranks": RANKS, "quantization": QUANTIZATION}
    devices = ["cpu"] if kind == "cpu" else [f"cuda:{rank}" for rank in range(RANKS)]
    config = {"devices": devices, "standby": True, "quantised_cache": {"path": str(folder / "quantised")}}
    with Neuron(folder / "neuron", models=[model], **config) as neuron:
        loads, first, token = asyncio.run(measure(neuron.endpoint, *TOKENS[kind]))
    weights = card.bytes_per_rank(SPLIT, "bfloat16", QUANTIZATION)[0]
    for name, seconds in zip(("load", "load again"), loads, strict=True):
        yield Row(name, weights / copy, seconds, f"{RANKS * weights / seconds / 1e9:.2f} GB/s of weights")
    tokens, _ = TOKENS[kind]
    _, numbers = of_each_token(card, 0)
    head = card.config.vocab_size * card.config.hidden_size  # used for the last token alone
    products = 2 * ((numbers - head) * tokens + head)
    yield Row("prefill", products / multiply / RANKS, first, f"{tokens / first:,.0f} tokens/s")
    seen = tokens * card.kv_bytes_per_token(SPLIT.part) + 2 * state_bytes(card.cache_groups(SPLIT.part))
    used = weights - embedding_bytes(card) + seen
    yield Row("decode 1 at once", used / read, token, f"{1 / token:,.0f} tokens/s")


def embedding_bytes(card: ModelCard) -> int:
    """What a rank holds of an embedding that is no head, of which a token reads one row."""
    if card.config.tied_head:
        return 0
    rows, columns = card.tensors[EMBEDDING].shape
    stored = card.formats(SPLIT, QUANTIZATION).get(EMBEDDING)
    return rows // RANKS * (2 * columns if stored is None else FORMATS[stored].row_bytes(columns))


async def measure(endpoint: str, tokens: int, answer: int) -> tuple[list[float], float, float]:
    """Seconds of both loads, of a prompt to its first token, and from one token to the next."""
    client, loads = NeuronClient(endpoint), []
    client.start()
    try:
        for again in (False, True):
            if again:
                await client.ask(Unload(id=0, model="benchmark"), PATIENCE)
            began = time.perf_counter()
            await client.ask(Load(id=0, model="benchmark"), PATIENCE)
            loads.append(time.perf_counter() - began)
        await Stream(client, request(prompt(1, tokens), answer)).end()  # compiles what is not yet
        began = time.perf_counter()
        stream = Stream(client, request(prompt(2, tokens), answer))
        await stream.end()
        first, last = stream.times[0], stream.times[-1]
        return loads, first - began, (last - first) / (len(stream.times) - 1)
    finally:
        client.close()
