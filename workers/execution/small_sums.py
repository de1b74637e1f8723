"""Whether the ranks add small tensors themselves: where all of them can, and each has seen it right."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ipc.worker_messages import WorkerSpec
from workers.parallel import RankGroup, SmallSums

ROUNDS = 4  # of the trial with each type, one right behind the other
POLLS = 1 << 20  # in one of them, while all ranks are at it: about a second of a GPU

logger = logging.getLogger("workers.execution.small_sums")


def small_sums(spec: WorkerSpec, group: RankGroup) -> SmallSums | None:
    """What adds them over the ranks, in memory that they share; None: the library is to, as it adds others.

    Each rank logs what is in the way here, if anything is.
    """
    if spec.sum_fd is None or group.size == 1:
        return None
    one_shot, tensors, fault = None, [], ""
    try:
        from workers.kernels.one_shot_triton import OneShot

        one_shot = OneShot(spec.sum_fd, group.rank, group.size, group.device)
        for dtype in dict.fromkeys((getattr(torch, spec.dtype), torch.float32)):
            tensors += _tensors(group, one_shot.most_bytes, dtype)
            one_shot.add(tensors[-1].clone(), patience=0)  # compiled here, while nobody waits for it
    except Exception as error:  # whatever it is: the library adds them as well
        fault = f"{type(error).__name__}: {error}"
    ours = [x.clone() for x in tensors]
    if group.least(int(not fault)):
        for x in ours:
            one_shot.add(x, POLLS)
        for x in tensors:
            group.all_reduce(x)
        right = all(map(torch.equal, ours, tensors))
        if group.least(int(right)):
            logger.info("small sums are made in the host's memory most_bytes=%d", one_shot.most_bytes)
            return one_shot
        fault = "" if right else "what came of a trial is wrong"
    if fault:
        logger.warning("small sums are the library's, too: %s", fault)
    if one_shot is not None:
        one_shot.close()
    return None


def _tensors(group: RankGroup, most_bytes: int, dtype: torch.dtype) -> list[Tensor]:
    """Integers so small that every order of adding them gives the same bits: the largest tensor, and less."""
    tensors = []
    for turn in range(ROUNDS):
        count = most_bytes // dtype.itemsize * (ROUNDS - turn) // ROUNDS // 2 * 2
        numbers = torch.arange(count, device=group.device) * (2 * group.rank + 3) + turn
        tensors.append((numbers % 17 - 8).to(dtype))
    return tensors
