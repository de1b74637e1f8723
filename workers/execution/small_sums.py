"""Whether the ranks add small tensors themselves: where all of them can, and each has seen it right."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ipc.worker_messages import WorkerSpec
from workers.parallel import RankGroup, SmallSums

ROUNDS = 8  # of the trial, one right behind the other
POLLS = 1 << 19  # in one of them, while all ranks are at it: half a second of a GPU

logger = logging.getLogger("workers.execution.small_sums")


def small_sums(spec: WorkerSpec, group: RankGroup) -> SmallSums | None:
    """What adds them over the ranks, in memory that they share; None: the library is to, as it adds others.

    Each rank logs what is in the way here, if anything is.
    """
    if spec.sum_fd is None or group.size == 1:
        return None
    dtypes = dict.fromkeys((getattr(torch, spec.dtype), torch.float32))
    one_shot, fault = None, ""
    try:
        from workers.kernels.one_shot_triton import OneShot

        one_shot = OneShot(spec.sum_fd, group.rank, group.size, group.device)
        for dtype in dtypes:  # it is compiled here, while nobody waits for it
            one_shot.add(torch.zeros(2, dtype=dtype, device=group.device), patience=0)
    except Exception as error:  # whatever it is: the library adds them as well
        fault = f"{type(error).__name__}: {error}"
    if group.least(int(not fault)):
        tried = [_tensors(group, dtype, one_shot.most_bytes) for dtype in dtypes]
        right = [_is_right(group, one_shot, tensors) for tensors in tried]
        if group.least(int(all(right))):
            logger.info("small sums are made in the host's memory most_bytes=%d", one_shot.most_bytes)
            return one_shot
        fault = "" if all(right) else "what came of a trial is wrong"
    if fault:
        logger.warning("small sums are the library's, too: %s", fault)
    if one_shot is not None:
        one_shot.close()
    return None


def _tensors(group: RankGroup, dtype: torch.dtype, most_bytes: int) -> list[Tensor]:
    """Integers so small that every order of adding them gives the same bits: the largest tensor, and less."""
    most, tensors = most_bytes // dtype.itemsize, []
    for turn in range(ROUNDS):
        count = most if turn % 4 == 0 else most * turn // ROUNDS // 2 * 2
        numbers = torch.arange(count, device=group.device) * (2 * group.rank + 3) + turn
        tensors.append((numbers % 17 - 8).to(dtype))
    return tensors


def _is_right(group: RankGroup, one_shot: SmallSums, tensors: list[Tensor]) -> bool:
    ours = [x.clone() for x in tensors]
    for x in ours:
        one_shot.add(x, POLLS)
    for x in tensors:
        group.all_reduce(x)
    return all(map(torch.equal, ours, tensors))
