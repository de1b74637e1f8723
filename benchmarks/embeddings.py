"""How many sentences a second become vectors: `python -m benchmarks.embeddings FOLDER [--json FILE]`.

A neuron with the embedder in FOLDER on the CPU, and clients of its protocol that each embed one sentence
after another; beside it, in the same run, transformers with the mean and length 1, and sentence-transformers
where it is installed: sentence by sentence, and in batches as large as there are clients. All have as many
threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer

from ipc.client import NeuronClient
from ipc.messages.requests import Embed, Load
from tests.neuron.harness import Neuron

CLIENTS = (1, 32)
SENTENCES = 384
ROUNDS = 3  # of which the best counts
TEXT = "the sea is high again today with a thrilling flush of wind and a kind of fury in the water"
PATIENCE = 300.0  # seconds

Embeds = Callable[[list[str]], object]


def sentences() -> list[str]:
    """Of 4 to 40 words."""
    words = TEXT.split()
    return [" ".join(words[(i + k) % len(words)] for k in range(4 + 7 * i % 37)) for i in range(SENTENCES)]


def by_transformers(folder: Path) -> Embeds:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed(texts: list[str]) -> object:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).tolist()

    return embed


def others(folder: Path) -> Iterator[tuple[str, Embeds]]:
    """What there is to compare with."""
    yield "transformers", by_transformers(folder)
    with suppress(ImportError):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu")
        yield "sentence-transformers", lambda texts: model.encode(texts, batch_size=len(texts)).tolist()


async def ours(client: NeuronClient, texts: list[str], clients: int) -> None:
    """All of them, by so many clients."""
    waiting = iter(texts)

    async def one() -> None:
        for text in waiting:
            await client.ask(Embed(id=0, model="benchmark", input=[text]), PATIENCE)

    await asyncio.gather(*(one() for _ in range(clients)))


async def measure(folder: Path) -> list[dict[str, Any]]:
    """Sentences a second, the best of interleaved rounds."""
    texts, found = sentences(), {}
    compared = list(others(folder))
    models = [{"id": "benchmark", "path": str(folder)}]
    with tempfile.TemporaryDirectory() as place, Neuron(Path(place), models) as neuron:
        client = NeuronClient(neuron.endpoint)
        client.start()
        await client.ask(Load(id=0, model="benchmark"), PATIENCE)
        for _ in range(ROUNDS):
            for clients in CLIENTS:
                began = time.perf_counter()
                await ours(client, texts, clients)
                found.setdefault(("cortex", clients), []).append(time.perf_counter() - began)
                for name, embed in compared:
                    began = time.perf_counter()
                    for start in range(0, len(texts), clients):
                        embed(texts[start : start + clients])
                    found.setdefault((name, clients), []).append(time.perf_counter() - began)
        client.close()
    return [
        {"who": who, "at_once": clients, "sentences_per_second": round(len(texts) / min(seconds), 1)}
        for (who, clients), seconds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.folder))
    table = Table("", *(f"{clients} at once" for clients in CLIENTS))
    for who in dict.fromkeys(row["who"] for row in rows):
        table.add_row(who, *(f"{row['sentences_per_second']:,.0f}" for row in rows if row["who"] == who))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
