"""The limit beside which times stand: what a device can do at most, and how much of a model a token takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from workers.checkpoints.card import ModelCard
from workers.checkpoints.families.llama import EMBEDDING
from workers.checkpoints.model_config import ModelConfig


def measure_limits(device: str) -> tuple[float, float, float]:
    """Bytes read a second, operations a second in bfloat16, and bytes copied from the host a second."""
    small = device == "cpu"
    memory = torch.ones((64 if small else 4096) << 18, device=device)
    read = memory.nbytes / median(memory.sum, device)
    size = 256 if small else 8192
    left = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    multiply = 2 * size**3 / median(lambda: left @ left, device)
    host = torch.ones((16 if small else 512) << 20, dtype=torch.uint8, pin_memory=not small)
    target = torch.empty_like(host, device=device)
    copy = host.nbytes / median(lambda: target.copy_(host), device)
    return read, multiply, copy


def median(function: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Seconds, the device's work included; the first round is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def of_each_token(card: ModelCard, weights: int) -> tuple[int, int]:
    """What a token that chose all experts would go through, of all `weights`: bytes, and how many numbers.

    Of an embedding that is no head it reads one row.
    """
    numbers = sum(math.prod(tensor.shape) for tensor in card.tensors.values())
    if card.config.tied_head:
        return weights, numbers
    embedding = card.tensors[EMBEDDING]
    return weights - embedding.nbytes, numbers - math.prod(embedding.shape)


def active(config: ModelConfig, weights: int, tokens: int) -> float:
    """Bytes of weights that so many tokens go through, who choose experts as if by lot."""
    if (experts := config.experts) is None:
        return weights
    each = len(experts.layers) * 3 * config.hidden_size * experts.intermediate_size * 2  # in bfloat16
    chosen = experts.count * (1 - (1 - experts.chosen / experts.count) ** tokens)
    return weights - each * (experts.count - chosen)
