"""From the place that a model was given to the worker group that serves it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipc.errors import CortexError
from ipc.worker_messages import StepReport, WeightCache
from neuron.config import ModelSettings, NeuronConfig, QuantisedCache
from neuron.description import ModelDescription
from neuron.memory.fit import Fit
from neuron.memory.parking import Loan, Parking
from neuron.processes.group import WorkerGroup
from neuron.processes.spawn import GroupSpec
from neuron.processes.standby import Standby

CUDA_RANK_THREADS = 4  # enough to read and copy weights


@dataclass(frozen=True, slots=True)
class Launcher:
    """Makes worker groups.

    Args:
        config: the neuron's.
        cores: CPU cores that this process may use.
        standby: where transformers get their processes from, and leave them.
        parking: where their weights stay; None: nowhere.
    """

    config: NeuronConfig
    cores: int
    standby: Standby | None = None
    parking: Parking | None = None

    def group(
        self,
        settings: ModelSettings,
        description: ModelDescription,
        fit: Fit,
        epoch: int,
        *,
        on_loading: Callable[[float, str], None],
        on_steps: Callable[[list[StepReport]], None],
        on_death: Callable[[CortexError], None],
        parking_fds: tuple[int, ...] = (),
    ) -> WorkerGroup:
        """A group that can be started. The callbacks are those of `WorkerGroup`.

        Args:
            parking_fds: memory for the weights of each rank.
        """
        spec = GroupSpec(
            model=description.id,
            engine=description.engine,
            devices=fit.devices,
            parts=() if fit.split.even else fit.split.counts,
            threads=self._threads(fit),
            context_length=fit.context_length,
            max_sequences=settings.max_sequences,
            max_step_tokens=description.step_tokens(settings, fit.devices[0]),
            kv_pages=fit.most_pages,
            states=fit.states,
            host_states=fit.host_states,
            resizable=self.config.memory.resize_pools and settings.kv_memory is None,
            rank_budgets=fit.rank_budgets,
            card=description.card,
            adapters=description.adapters,
            dtype=description.dtype,
            exact=settings.exact,
            simulated=description.simulated,
            log_level=self.config.log_level,
            quantization=settings.quantization,
            weight_cache=weight_cache(self.config.quantised_cache),
            parking_fds=parking_fds,
            kv_cache_dtype=settings.kv_cache_dtype,
            speculation=settings.speculation,
        )
        return WorkerGroup(
            spec,
            epoch,
            step_deadline=self.config.step_deadline_seconds,
            on_loading=on_loading,
            on_steps=on_steps,
            on_death=on_death,
            standby=self.standby if description.engine == "transformer" else None,
        )

    def lend(self, settings: ModelSettings, description: ModelDescription, fit: Fit) -> Loan | None:
        """Memory for the weights of a load, if there is some. Those of a pinned model need no new one: it
        stays."""
        if self.parking is None or description.engine != "transformer":
            return None
        sizes = description.bytes_of_ranks(settings, fit.split)
        identity = parked_identity(settings, description, fit)
        return self.parking.lend(description.id, identity, sizes, new=not settings.pin)

    def wakes(self, settings: ModelSettings, description: ModelDescription, fit: Fit) -> bool:
        """Whether such a load finds its weights in that memory."""
        if self.parking is None or description.engine != "transformer":
            return False
        return self.parking.wakes(description.id, parked_identity(settings, description, fit))

    def _threads(self, fit: Fit) -> int:
        """CPU threads of each rank."""
        share = max(1, self.cores // len(fit.devices))
        return share if fit.devices[0] == "cpu" else min(share, CUDA_RANK_THREADS)


def parked_identity(settings: ModelSettings, description: ModelDescription, fit: Fit) -> object:
    """Equal for loads whose ranks are filled with the same bytes: the files, and what is made of them."""
    card, kind = description.card, fit.devices[0].partition(":")[0]
    return (
        card.folder,
        tuple(card.files),
        card.config.mtp,
        description.dtype,
        settings.quantization,
        fit.split.counts,
        kind,
    )


def weight_cache(settings: QuantisedCache) -> WeightCache | None:
    """Where workers keep copies of quantised weights; None: nowhere.

    Without a word that is in the cache folder that systemd gives a service, else in the user's.
    """
    if not settings.max_size:
        return None
    if settings.path is not None:
        folder = Path(settings.path)
    elif given := os.environ.get("CACHE_DIRECTORY"):
        folder = Path(given.split(":")[0]) / "quantised"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cortex" / "quantised"
    return WeightCache(folder=os.path.abspath(folder.expanduser()), max_bytes=settings.max_size)
