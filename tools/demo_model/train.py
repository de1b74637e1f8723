"""Train the demo model from nothing: `python -m tools.demo_model.train --out neuron/demo --minutes 18`.

One CPU core with bfloat16 instructions is enough. Conversations of like length go through the model
together, so that little padding is computed; the loss counts what the assistant says. Minutes are minutes
of processor time.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Queue
from random import Random
from threading import Thread

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_model import corpus, export, induction
from tools.demo_model import tokenizer as tokenizers
from tools.demo_model.model import Qwen3, Shape

LONGEST = 512
"""Tokens; the few conversations that are longer are dropped."""
CHUNK = 2048
"""Tokens, padding included, that go through the model at once: what it leaves fits the caches."""


@dataclass(slots=True)
class Chunk:
    """Conversations of about the same length; both fields are [conversations, tokens]."""

    tokens: Tensor  # int64, padded with 0 on the right
    learn: Tensor  # bool: whether the loss counts this token


def _encoded(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Conversations as (token ids, whether each is learnt), without end."""
    talks = corpus.conversations(seed)
    while True:
        spans = [list(corpus.render(talk)) for talk in islice(talks, 512)]
        ids = iter(tokenizer.encode_batch([text for talk in spans for text, _ in talk]))
        for talk in spans:
            tokens: list[int] = []
            learn: list[bool] = []
            for _, spoken in talk:
                span = next(ids).ids
                tokens += span
                learn += [spoken] * len(span)
            if len(tokens) <= LONGEST:
                yield tokens, learn


def _chunk(talks: list[tuple[list[int], list[bool]]]) -> Chunk:
    longest = max(len(ids) for ids, _ in talks)
    tokens = torch.zeros(len(talks), longest, dtype=torch.int64)
    learn = torch.zeros(len(talks), longest, dtype=torch.bool)
    for row, (ids, learnt) in enumerate(talks):
        tokens[row, : len(ids)] = torch.tensor(ids)
        learn[row, 1 : len(ids)] = torch.tensor(learnt[1:])
    return Chunk(tokens, learn)


def batches(tokenizer: Tokenizer, seed: int, size: int) -> Iterator[list[Chunk]]:
    """Batches of about `size` tokens, each as chunks of at most CHUNK.

    Sixteen batches are sorted by length at once, cut into chunks and shuffled: little padding, mixed lengths.
    """
    rng = Random(seed)
    stream = _encoded(tokenizer, seed)
    each = max(1, size // CHUNK)
    while True:
        talks = sorted(_take(stream, 16 * size), key=lambda talk: len(talk[0]))
        chunks: list[Chunk] = []
        rows: list[tuple[list[int], list[bool]]] = []
        for talk in talks:
            if (len(rows) + 1) * len(talk[0]) > CHUNK:
                chunks.append(_chunk(rows))
                rows = []
            rows.append(talk)
        rng.shuffle(chunks)
        for start in range(0, len(chunks) - each, each):
            yield chunks[start : start + each]


def _take(
    stream: Iterator[tuple[list[int], list[bool]]], size: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Conversations until `size` tokens are reached."""
    while size > 0:
        talk = next(stream)
        size -= len(talk[0])
        yield talk


def _ahead(source: Iterator[list[Chunk]]) -> Iterator[list[Chunk]]:
    """The same batches, made by a thread while the model computes."""
    queue: Queue[list[Chunk]] = Queue(maxsize=4)

    def fill() -> None:
        for batch in source:
            queue.put(batch)

    Thread(target=fill, daemon=True).start()
    while True:
        yield queue.get()


def loss_of(model: Qwen3, chunk: Chunk) -> Tensor:
    """Cross-entropy in nats, summed over the tokens that count."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(chunk.tokens, keep=F.pad(chunk.learn[:, 1:], (0, 1)))
    return F.cross_entropy(logits.float(), chunk.tokens[chunk.learn], reduction="sum")


def train(
    folder: Path, minutes: float, size: int, peak: float, threads: int, seed: int, resume: bool
) -> None:
    """Train for so many minutes of processor time, then export; progress goes to standard output.

    With `resume` the weights in `folder` are the start; give another seed then, or the same text comes again.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    if (folder / "tokenizer.json").exists():  # a vocabulary, once published, stays when the corpus grows
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        tokenizer = tokenizers.train(0)
        tokenizers.save(tokenizer, folder, shape.max_position_embeddings)
    export.save_config(shape, tokenizer, folder)

    if resume:
        model = export.load(folder)
    else:
        model = Qwen3(shape)
        induction.plant(model)
    for layer in model.model.layers:
        layer.compile(dynamic=True)  # fuses what lies between the matrix products: 1.5 times as fast
    # Muon makes each update of a matrix orthogonal, which takes about half the steps that AdamW needs
    inner = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.dim() == 1)]
    optimizers = (
        torch.optim.Muon(inner, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

    begin = time.process_time()  # not the clock on the wall: other work on the machine must not cut it short
    seen, shown = 0, 0.0
    for step, batch in enumerate(_ahead(batches(tokenizer, seed, size))):
        elapsed = time.process_time() - begin
        done = elapsed / (60 * minutes)
        if done >= 1:
            break
        # cosine by time, so that any machine ends at rest; warm-up by steps, which Adam's moments need
        rate = peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        model.zero_grad(set_to_none=True)
        learnt = sum(int(chunk.learn.sum()) for chunk in batch)
        loss = 0.0
        for chunk in batch:
            part = loss_of(model, chunk) / learnt
            part.backward()
            loss += part.item()
            seen += chunk.tokens.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        shown = loss if step == 0 else 0.98 * shown + 0.02 * loss
        if step % 50 == 0:
            pace = seen / max(time.process_time() - begin, 1e-9)
            print(f"{elapsed / 60:5.1f} min  step {step:5d}  {seen / 1e6:6.2f}M tokens  {pace:6.0f}/s  "
                  f"lr {rate:.1e}  loss {shown:.4f}", flush=True)  # fmt: skip
            if step % 500 == 0 and step:
                export.save_weights(model, folder)
    export.save_weights(model, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("neuron/demo"))
    parser.add_argument("--minutes", type=float, default=18, help="of processor time")
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out")
    args = parser.parse_args()
    train(args.out, args.minutes, args.batch, args.rate, args.threads, args.seed, args.resume)


if __name__ == "__main__":
    main()
