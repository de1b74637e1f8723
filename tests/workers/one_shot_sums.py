"""Sums that a rank makes with others in memory that all have: one after the other, of all types and sizes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from workers.kernels import fused
from workers.kernels.one_shot_triton import BLOCK, KINDS, OneShot
from workers.parallel import in_order

WORDS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 70)


def as_kept(total: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum in float32 as a card rounds it; the interpreter cuts it off to make bfloat16 of it."""
    if fused.INTERPRETED and dtype == torch.bfloat16:
        total = (total.view(torch.int32) & -65536).view(torch.float32)
    return total.to(dtype)


def one_of(rng: random.Random, size: int) -> list[Tensor]:
    """A tensor of each rank. Their numbers are so unlike that another order would give other bits."""
    dtype, words = rng.choice([*KINDS]), rng.choice(WORDS)
    maker = torch.Generator().manual_seed(rng.getrandbits(32))
    shape = (size, words * 4 // dtype.itemsize)
    numbers = torch.randn(shape, generator=maker) * 2.0 ** torch.randint(-6, 7, shape, generator=maker)
    return [*numbers.to(dtype)]


def wrong_sums(fd: int, rank: int, size: int, device: str, rounds: int, launches: int = 0) -> list[int]:
    """Rounds in which the sum of this rank was not the one in order, to the last bit.

    One comes right after another or later, on each rank by itself. It always comes to the same place; on a
    GPU its launch is recorded when it comes for the second time.

    Args:
        launches: that there were before, as each program counts them.
    """
    on = torch.device(device)
    one_shot = OneShot(fd, rank, size, on)
    one_shot._counts.fill_(launches)
    rng, own, wrong = random.Random(size), random.Random(rank), []
    places: dict[object, tuple[Tensor, Callable[[], None]]] = {}
    for turn in range(rounds):
        parts = one_of(rng, size)
        kind = parts[0].dtype, len(parts[0])
        if kind not in places:
            space = torch.empty(2 * len(parts[0]) + 1, dtype=parts[0].dtype, device=on)
            # on each rank by itself, somewhere between words or in pieces
            x = own.choice((space[: len(parts[0])], space[1 : len(parts[0]) + 1], space[1::2]))
            places[kind] = x, partial(one_shot.add, x)
        elif on.type == "cuda" and isinstance(places[kind][1], partial):
            places[kind] = x, recorded(*places[kind])
        x, add = places[kind]
        x.copy_(parts[rank])
        if own.random() < 0.3:
            time.sleep(own.random() * 0.005)
        add()
        if not torch.equal(x.cpu(), as_kept(in_order(parts), x.dtype)):
            wrong.append(turn)
    one_shot.close()
    return wrong


def recorded(x: Tensor, add: Callable[[], None]) -> Callable[[], None]:
    """What replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add()
    return graph.replay


def be(end: Connection, memory: Any, rank: int, size: int, device: str, rounds: int) -> None:
    """A rank in a process of its own, which has the descriptor in `memory`."""
    torch.cuda.set_device(device)
    end.send(wrong_sums(memory.detach(), rank, size, device, rounds))
