"""What a worker group is started with."""

from __future__ import annotations

import asyncio

import pytest

from ipc.worker_messages import SimulatedSpec
from neuron.config import ModelSettings, NeuronConfig
from neuron.memory.fit import Fit
from neuron.tenancy.launcher import CUDA_RANK_THREADS, Launcher
from tests.neuron.owned_model import described


def threads(devices: tuple[str, ...], cores: int) -> int:
    """Of each rank."""
    description = described(id="sim", engine="simulated", simulated=SimulatedSpec(answer=[7]))
    fit = Fit(devices, reservations={}, rank_budgets=(), kv_pages=1, most_pages=1, context_length=1)
    settings = ModelSettings(id="sim", ranks=len(devices))
    silent = {f"on_{what}": lambda *told: None for what in ("loading", "steps", "death")}

    async def made() -> int:
        return Launcher(NeuronConfig(), cores).group(settings, description, fit, 1, **silent).spec.threads

    return asyncio.run(made())


@pytest.mark.parametrize(
    ("ranks", "each"),
    [(1, (1, 2, 5, 16)), (2, (1, 1, 2, 8)), (3, (1, 1, 1, 5))],
)
def test_ranks_on_a_cpu_divide_its_cores(ranks, each):
    assert tuple(threads(("cpu",) * ranks, cores) for cores in (1, 2, 5, 16)) == each


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("cores", [1, 2, 6, 64])
def test_ranks_on_gpus_have_a_few_of_them_at_most(ranks, cores):
    devices = tuple(f"cuda:{number}" for number in range(ranks))
    assert threads(devices, cores) == min(CUDA_RANK_THREADS, max(1, cores // ranks))
