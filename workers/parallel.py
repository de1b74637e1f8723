"""The ranks of one model as a group: which part of the model is mine, and how the parts are put together.

A group of one needs no network, no store and no library: every collective is the identity.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ipc.worker_messages import WorkerSpec

# No wait is for ever. The supervisor's deadlines for loads and steps are shorter and come first.
TIMEOUT = timedelta(minutes=30)


class Group:
    """Tensor parallelism: NCCL between GPUs, gloo over loopback between CPU ranks.

    Args:
        rank: this process, from 0.
        size: number of ranks.
        device: where the tensors of the collectives are.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str | torch.device = "cpu") -> None:
        self.rank = rank
        self.size = size
        self.device = torch.device(device)

    @classmethod
    def join(cls, spec: WorkerSpec) -> Group:
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
        return cls(spec.rank, spec.world_size, spec.device)

    def share(self, total: int) -> range:
        """This rank's part of `total` rows, columns or heads that the ranks divide evenly."""
        part = total // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def share_kv(self, heads: int) -> range:
        """This rank's key-value heads: one, shared with its neighbours, where ranks outnumber heads."""
        first = self.rank * heads // self.size
        return range(first, first + max(1, heads // self.size))

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:  # [rows, part] -> [rows, size * part]
        """Every rank's columns, side by side."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def prove(self) -> int:
        """All-reduce a one: `size`, if every rank takes part in what the model will use."""
        return int(self.all_reduce(torch.ones(1, device=self.device)).item())

    def leave(self) -> None:
        """End the group; the other ranks' collectives fail from now on."""
        if dist.is_initialized():
            dist.destroy_process_group()
