"""The memory of recurrent states: of each layer that keeps one, as many as sequences and checkpoints need.

Behind those of the device there may be more in the host's memory: of texts that may go on, and for which the
device has no room meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.cache.paged import zeros
from workers.checkpoints.model_config import StateShape
from workers.locked import lock, unlock
from workers.step.plan import StateMove

logger = logging.getLogger("workers.cache.state")


class StateCache:
    """States are numbered, and a number stands for the states of all layers, which lie together.

    Behind the last one is one more that nobody writes: a sequence begins with it, and it is zero.

    Args:
        layers: numbers of those that keep a state.
        shape: what each is on this rank.
        states: how many.

    Attributes:
        arena: `[states + 1, elements of one]` float32.
        matrices: of each layer, `[states + 1, *shape.matrices]` float32; of a convolution alone nothing.
        inputs: the last ones of its convolution, `[states + 1, kernel - 1, channels]` float32.
    """

    def __init__(
        self,
        layers: Sequence[int],
        shape: StateShape,
        *,
        states: int,
        device: torch.device,
    ) -> None:
        self.states, self.shape, self.device = states, shape, device
        size = shape.state_size
        self.arena = zeros((states + 1, len(layers) * size), torch.float32, device)
        self.matrices: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
        inputs = (shape.kernel - 1, shape.channels)
        split = math.prod(shape.matrices)
        for place, layer in enumerate(layers):
            part = self.arena[:, place * size : (place + 1) * size]
            self.matrices[layer] = part[:, :split].unflatten(1, shape.matrices)
            self.inputs[layer] = part[:, split:].unflatten(1, inputs)

    @property
    def zero(self) -> int:
        """The number of the state that a sequence begins with."""
        return self.states

    @property
    def nbytes(self) -> int:
        return self.arena.nbytes


class HostStates:
    """Places in the host's memory, each for one state of `cache`.

    A GPU reads and writes them itself, in the order of its other work, so that the host waits for no copy and
    no step overtakes one. For that they are locked; where the system does not allow it, copies go through
    memory of the driver's.

    Args:
        cache: where states come from and go back to.
        places: how many.
    """

    def __init__(self, cache: StateCache, places: int) -> None:
        self._device = cache.arena
        self._host = zeros((places, cache.arena.shape[1]), torch.float32, torch.device("cpu"))
        self._locked = cache.device.type == "cuda" and self._lock()

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    def move(self, move: StateMove) -> None:
        """Make this copy before whatever the device is told next."""
        device, host = self._device[move.state], self._host[move.place]
        to, source = (host, device) if move.leaves else (device, host)
        to.copy_(source, non_blocking=self._locked)

    def close(self) -> None:
        """Unlock the memory, of which the device makes no use any more."""
        if self._locked:
            unlock(self._host, self._device.device)
            self._locked = False

    def _lock(self) -> bool:
        failed = lock(self._host, self._device.device)
        if failed:
            logger.warning("memory for states is not locked bytes=%d cuda_error=%d", self.nbytes, failed)
        return not failed
