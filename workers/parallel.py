"""The ranks of one model as a group: which part of the model is mine, and how the parts are put together.

A group of one needs no network, no store and no library: every collective is the identity.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ipc.worker_messages import WorkerSpec
from workers.checkpoints.shares import Split

# No wait is for ever. The supervisor's deadlines for loads and steps are shorter and come first.
TIMEOUT = timedelta(minutes=30)
TIMED_STEPS = 16  # on a GPU one step in so many is timed, and stands for all of them


class SmallSums(Protocol):
    """What adds some tensors over the ranks itself, one after the other as they are told to."""

    def takes(self, x: Tensor) -> bool:
        """Whether it adds such a tensor; all ranks say the same of it."""
        ...

    def add(self, x: Tensor) -> None:
        """Put the sum in its place: made in float32 and in the order of ranks, and rounded once."""
        ...

    def close(self) -> None:
        """Let go of what that took."""
        ...


class RankGroup:
    """Tensor parallelism: NCCL between GPUs, gloo over loopback between CPU ranks.

    Args:
        rank: this process, from 0.
        size: number of ranks.
        device: where the tensors of the collectives are.
        exact: sums are made here, rank by rank in float32, and not by a library, which may add the parts of a
            row in an order that depends on what else is in the tensor.
        split: how the ranks share a model; None: evenly.

    Attributes:
        alike: the ranks compute the same bits of the same numbers. Unlike cards may not: they add in other
            orders, and what is chosen by comparing such sums has to be one rank's choice.
        small: adds small tensors, for which a library takes long; None: the library does.
        mine: its share of the model.
        collectives: that this rank took part in.
        collective_seconds: that it spent in all of them. Part of that is waiting: of ranks that take part in
            the same collectives, the one with the fewest seconds is the one that the others wait for. A GPU
            is never waited for to learn this: events in its stream time one step in TIMED_STEPS.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        device: str | torch.device = "cpu",
        exact: bool = False,
        split: Split | None = None,
    ) -> None:
        self.exact = exact
        self.alike = True
        self.small: SmallSums | None = None
        self.rank = rank
        self.size = size
        self.split = Split.evenly(size) if split is None else split
        self.mine = self.split.share(rank)
        self.device = torch.device(device)
        self.collectives = 0
        self.collective_seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._timed = self.device.type == "cpu"

    @classmethod
    def join(cls, spec: WorkerSpec) -> RankGroup:
        """Meet the other ranks; returns when all are there.

        The supervisor has bound the rendezvous socket already and rank 0 inherits it, so that two groups
        that start at the same moment never meet at the same port.
        """
        if spec.world_size > 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            device = torch.device(spec.device)
            store = dist.TCPStore(
                "127.0.0.1",
                spec.store_port,
                spec.world_size,
                is_master=spec.rank == 0,
                timeout=TIMEOUT,
                master_listen_fd=spec.store_fd if spec.rank == 0 else None,
            )
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=spec.rank,
                world_size=spec.world_size,
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
        group = cls(spec.rank, spec.world_size, spec.device, spec.exact, split_of(spec))
        if group.size > 1 and group.device.type == "cuda":
            kind = zlib.crc32(torch.cuda.get_device_name(group.device).encode())
            group.alike = group.least(kind) == -group.least(-kind)
        return group

    def share(self, total: int) -> range:
        """This rank's part of `total` rows, columns or heads, that the parts of a model divide evenly."""
        return self.mine.range(total)

    def share_kv(self, heads: int) -> range:
        """This rank's key-value heads: one, shared with its neighbours, where parts outnumber heads."""
        return self.mine.kv_range(heads)

    def begin_step(self, step: int) -> None:
        """The collectives that follow belong to step number `step`."""
        if self.device.type == "cpu":
            return
        if self._events and self._events[-1][1].query():  # all of them: they are in one stream
            milliseconds = sum(start.elapsed_time(end) for start, end in self._events)
            self.collective_seconds += TIMED_STEPS * milliseconds / 1000
            self._events.clear()
        self._timed = step % TIMED_STEPS == 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size == 1:
            return x
        if self.small is not None and self.small.takes(x):
            self._run(self.small.add, x)
        elif self.exact:
            parts = [torch.empty_like(x) for _ in range(self.size)]
            self._run(dist.all_gather, parts, x.contiguous())
            x.copy_(in_order(parts))
        else:
            self._run(dist.all_reduce, x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:  # [rows, mine] -> [rows, of all]
        """Every rank's columns, side by side, on every rank."""
        if self.size == 1:
            return x
        x, widths = self._as_wide_as_any(x)
        parts = [torch.empty_like(x) for _ in widths]
        self._run(dist.all_gather, parts, x)
        return _side_by_side(parts, widths)

    def gather(self, x: Tensor) -> Tensor | None:  # [rows, mine] -> [rows, of all]
        """Every rank's columns, side by side, on rank 0; nothing on the others."""
        if self.size == 1:
            return x
        x, widths = self._as_wide_as_any(x)
        parts = [torch.empty_like(x) for _ in widths] if self.rank == 0 else None
        self._run(dist.gather, x, parts)
        return _side_by_side(parts, widths) if parts else None

    def _as_wide_as_any(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """This rank's columns, padded to those of the rank that has most; and how many each has."""
        widths = [x.shape[-1] // self.mine.count * count for count in self.split.counts]
        if lacking := max(widths) - x.shape[-1]:
            x = F.pad(x, (0, lacking))
        return x.contiguous(), widths

    @property
    def chooses_alike(self) -> bool:
        """Whether what each rank chooses is the choice of all."""
        return self.size == 1 or self.alike

    def chosen(self, x: Tensor) -> Tensor:
        """The choice of rank 0 in place of one that unlike ranks may each have made in another way."""
        if not self.chooses_alike:
            self._run(partial(dist.broadcast, src=0), x)
        return x

    def from_first(self, x: Tensor) -> Tensor:
        """What rank 0 has, on every rank, in place."""
        if self.size > 1:
            self._run(partial(dist.broadcast, src=0), x)
        return x

    def least(self, value: int) -> int:
        """The smallest of the ranks' values."""
        if self.size == 1:
            return value
        least = torch.tensor(value, device=self.device)
        self._run(partial(dist.all_reduce, op=dist.ReduceOp.MIN), least)
        return int(least)

    def _run(self, collective: Callable[..., object], *tensors: Tensor | list[Tensor] | None) -> None:
        self.collectives += 1
        if not self._timed or (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            collective(*tensors)
        elif self.device.type == "cpu":
            began = time.perf_counter()
            collective(*tensors)
            self.collective_seconds += time.perf_counter() - began
        else:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            collective(*tensors)
            end.record()
            self._events.append((start, end))

    def prove(self) -> int:
        """All-reduce a one: `size`, if every rank takes part in what the model will use."""
        return int(self.all_reduce(torch.ones(1, device=self.device)).item())

    def leave(self) -> None:
        """End the group; the other ranks' collectives fail from now on."""
        if self.small is not None:
            self.small.close()
            self.small = None
        if dist.is_initialized():
            dist.destroy_process_group()


def split_of(spec: WorkerSpec) -> Split:
    """How the ranks share the model."""
    return Split(tuple(spec.parts)) if spec.parts else Split.evenly(spec.world_size)


def _side_by_side(parts: list[Tensor], widths: list[int]) -> Tensor:
    """The first columns of each, as many as it has."""
    return torch.cat([part[..., :width] for part, width in zip(parts, widths, strict=True)], dim=-1)


def in_order(parts: list[Tensor]) -> Tensor:
    """The sum in float32, one part after the other."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total
