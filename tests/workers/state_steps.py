"""Steps through random states, by the backend for GPUs and by that in torch: how far they are apart."""

from __future__ import annotations

import copy
from array import array
from types import SimpleNamespace

import torch

from workers.attention.convolutions import ConvolvedInputs
from workers.attention.convolutions_cuda import TritonInputs
from workers.attention.spaces_cuda import TritonSpaces
from workers.attention.states import RecurrentStates
from workers.attention.states_cuda import TritonStates
from workers.cache.state import StateCache
from workers.checkpoints.model_config import DeltaNet, Mamba, ShortConvolution, StateShape
from workers.step.batch import Segment

# Of a sequence: tokens before the step, in it, drafts of these, and how many of them are right; those with
# one token come first, then those with drafts.
STEPS = [
    [(0, 1, 0, 0), (31, 1, 0, 0), (5, 1, 0, 0), (0, 2, 0, 0), (33, 3, 0, 0)],
    [(70, 5, 0, 0), (1, 70, 0, 0)],
    [(0, 63, 0, 0), (3, 64, 0, 0), (0, 65, 0, 0), (5, 130, 0, 0)],
    [(9, 1, 0, 0), (32, 4, 3, 1), (7, 2, 1, 0), (1, 6, 5, 5), (0, 40, 0, 0)],
    [(64, 5, 4, 3)],
]
SHAPES = [
    DeltaNet(key_heads=2, value_heads=6, key_dim=8, value_dim=12, kernel=4),
    DeltaNet(key_heads=1, value_heads=1, key_dim=32, value_dim=40, kernel=2),
    ShortConvolution(channels=44, kernel=3),
    Mamba(heads=6, head_dim=12, groups=2, state_dim=20, kernel=4),
    Mamba(heads=1, head_dim=40, groups=1, state_dim=16, kernel=2, conv_bias=False),
]


def errors(device: str, shape: StateShape, dtype: torch.dtype = torch.float32) -> list[float]:
    """How far both are apart in each step, in what tokens read and in what is kept."""
    torch.manual_seed(7)
    cache = StateCache([0, 1], shape, states=12, device=torch.device(device))
    for layer in (0, 1):
        for kept in (cache.matrices[layer], cache.inputs[layer]):
            kept.copy_(torch.randn(kept.shape))
            kept[cache.zero] = 0
    found = []
    for lengths in STEPS:
        segments, row = [], 0
        for number, (start, count, drafts, _) in enumerate(lengths):
            table = array("q", [2 * number, 2 * number + 1] * 4)
            slot = SimpleNamespace(tables=[array("q"), table])
            segments.append(Segment(slot, range(row, row + count), start, drafts))
            row += count
        mixed = torch.randn(row, shape.channels, device=device).to(dtype)
        weight = torch.randn(shape.channels, shape.kernel, device=device).to(dtype)
        kinds, given = (ConvolvedInputs, TritonInputs), (mixed, weight)
        if isinstance(shape, DeltaNet):
            decay = -torch.rand(row, shape.value_heads, device=device).mul(3).exp() / 8
            kinds = RecurrentStates, TritonStates
            given += decay, torch.rand(row, shape.value_heads, device=device)
        if isinstance(shape, Mamba):
            steps = torch.rand(row, shape.heads, device=device).mul(3).exp() / 8
            bias = torch.randn(shape.channels, device=device).to(dtype) if shape.conv_bias else None
            kinds = RecurrentStates, TritonSpaces
            given += -steps * torch.rand(shape.heads, device=device), steps, bias
            given += (torch.randn(shape.heads, device=device),)
        results = []
        for kind in kinds:
            own = copy.deepcopy(cache)
            backend = kind(own, 1, 256)
            arrays = backend.arrays(segments)
            tensors = {name: torch.tensor(list(values), device=device) for name, values in arrays.items()}
            y = backend.run(backend.prepare(segments, tensors), 1, *given)
            if right := [right for _, _, drafts, right in lengths if drafts]:
                backend.adopt(right)
            results.append((y, own.matrices[1], own.inputs[1], own.matrices[0]))
        for ours, other in zip(*results, strict=True):
            if ours.numel():  # sums of Mamba-2 are large
                largest = float(other.abs().max()) if isinstance(shape, Mamba) else 1.0
                found.append(float((ours - other).abs().max()) / max(1.0, largest))
    return found
