"""What every engine does before it computes: its group joined, its weights read, its device made ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from ipc.errors import Code, CortexError
from ipc.worker_messages import WorkerSpec
from workers.checkpoints.card import ModelCard
from workers.execution.device import check_builds, check_type, is_out_of_memory, num_threads, tune_cpu
from workers.execution.small_sums import small_sums
from workers.kernels.products import reads_planes
from workers.models.decoder import Decoder
from workers.models.encoder import Encoder
from workers.parallel import RankGroup, split_of
from workers.step.engine import Loaded, OutOfDeviceMemory
from workers.weights import parking
from workers.weights.loader import Shard
from workers.weights.quantised_cache import load_weights

Progress = Callable[[float, str], None]  # told what is done, and how much of the weights is there, of 1


def within_memory(load: Callable[[], Loaded], spec: WorkerSpec, card: ModelCard) -> Loaded:
    """What `load` returns.

    Raises:
        CortexError: what it raises; INSUFFICIENT_MEMORY where the device had too little.
    """
    try:
        return load()
    except (RuntimeError, MemoryError, OutOfDeviceMemory) as error:
        if not (isinstance(error, OutOfDeviceMemory) or is_out_of_memory(error)):
            raise
        reason = str(error).partition("\n")[0]
    raise CortexError(  # here, because the error held what the load had
        Code.INSUFFICIENT_MEMORY,
        f"{spec.device} ran out of memory while {card.folder} was loaded: {reason}. "
        "A smaller max_step_tokens, max_sequences or context_length needs less",
    )


def join(spec: WorkerSpec, card: ModelCard) -> RankGroup:
    """Meet the other ranks, on this one's device.

    Raises:
        CortexError: MODEL_LOAD_FAILED, the model does not divide over the ranks, or is not for this device.
    """
    card.check_split(split_of(spec))
    device = torch.device(spec.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        check_type(torch.cuda.get_device_capability(device), spec)
        check_builds(spec.device)
    group = RankGroup.join(spec)
    group.small = small_sums(spec, group)
    return group


def read_weights(
    spec: WorkerSpec,
    card: ModelCard,
    group: RankGroup,
    formats: Mapping[str, str],
    parts: Callable[[], Iterable[Shard]],
    progress: Progress,
) -> bool:
    """Fill and finish `parts`, which are the same ones each time.

    Args:
        formats: of weights that are in blocks, by name.

    Returns:
        Whether they came from the host's memory, where they had been parked.

    Raises:
        CortexError: the checkpoint cannot be read.
    """
    torch.set_num_threads(1)  # the loader has threads of its own

    def reading(fraction: float) -> None:
        progress(fraction, "reading weights")

    def read(parts: Iterable[Shard]) -> None:
        load_weights(card, formats, parts, reading, group, spec.weight_cache)

    return parking.load(spec.parking_fd, parts, reading, group, read)


def filling(spec: WorkerSpec, card: ModelCard, group: RankGroup) -> int:
    """Bytes that this rank's weights take, once they are there, over what is read for them."""
    if not reads_planes(group.device, getattr(torch, spec.dtype)):
        return 0
    return card.filling_per_rank(group.split, spec.dtype, spec.quantization)[group.rank]


def make_ready(spec: WorkerSpec, model: Decoder | Encoder, weights: int, progress: Progress) -> int:
    """Have the device compute as `spec` says, now that the weights are there.

    Args:
        weights: bytes of them.

    Returns:
        CPU threads that compute.
    """
    torch.set_num_threads(threads := num_threads(spec, weights))
    if torch.device(spec.device).type == "cpu":
        tune_cpu(getattr(torch, spec.dtype))
    if spec.exact:
        progress(1.0, "trying products")
        with torch.inference_mode():
            model.make_exact()
    return threads
