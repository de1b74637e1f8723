"""What stands in place of a GPU that records launches, and attention of which a step can be recorded."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
)
from torch.utils._pytree import tree_leaves, tree_map

from ipc.worker_messages import PAGE_SIZE
from tests.workers.engines import unlike_requests
from workers.cache.paged import KVCache, write_kv
from workers.execution import model_runner
from workers.kernels.launch import Launcher
from workers.step.batch import Segment

CONTEXT = 96  # tokens; attention that can be recorded here reads so many, whatever there is
LIMITS = {"context_length": CONTEXT, "max_step_tokens": 64}


T = TypeVar("T")
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Recorder:
    """Records what torch does on a CPU, and kernels that are interpreted there. Implements
    `workers.execution.graphs.GraphDevice`.

    As with a graph, nothing has happened when the recording is done, a replay does the same to the same
    tensors, and what the host did or looked at on the way is not done again.

    Attributes:
        captured, replayed: how often.
        fails: the next captures end with an error.
    """

    def __init__(self) -> None:
        self.captured = self.replayed = self.released = 0
        self.fails = False

    def capture(self, launches: Callable[[], T]) -> tuple[Callable[[], None], T]:
        tape = Tape()
        try:
            with tape:
                result = launches()
                if self.fails:
                    raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        finally:
            tape.undo()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay(result)

        return replay, result

    def held(self) -> int:
        return self.captured

    def release(self) -> None:
        self.released += 1


class Tape(TorchDispatchMode):
    """The operations of a `with`, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []  # what was written to, and what was in it

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        masked = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or (WAITS.intersection(func.tags) and func is not torch.ops.aten.index.Tensor):
            raise RuntimeError(f"{func} waits for the device")
        if func is torch.ops.aten.lift_fresh.default:
            raise RuntimeError("torch.tensor brings something from the host")
        written = [
            args[number] if number < len(args) else kwargs.get(each.name)
            for number, each in enumerate(func._schema.arguments)
            if each.alias_info is not None and each.alias_info.is_write
        ]
        self._before += [(tensor, tensor.clone()) for tensor in written if tensor is not None]
        result = func(*args, **kwargs)
        self._calls.append((func, args, kwargs, result))
        return result

    def launch(self, run: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """A kernel is launched, which may write to whatever tensor it is given."""
        with _disable_current_modes():
            self._before += [(each, each.clone()) for each in args if isinstance(each, Tensor)]
            run(*args, **kwargs)
        self._calls.append((run, args, kwargs, None))

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)
        self._before.clear()

    @torch.inference_mode()
    def replay(self, into: Any) -> None:
        """All of it again; what was returned, `into`, is where it comes."""
        now: dict[int, Tensor] = {}  # by the tensor of the recording that it stands for

        def current(x: Any) -> Any:
            return now.get(id(x), x)

        for func, args, kwargs, recorded in self._calls:
            result = func(*tree_map(current, args), **tree_map(current, kwargs))
            pairs = zip(tree_leaves(recorded), tree_leaves(result), strict=True)
            now |= {id(a): b for a, b in pairs if a is not None}
        for tensor in tree_leaves(into):
            if id(tensor) in now and tensor.data_ptr() != now[id(tensor)].data_ptr():
                tensor.copy_(now[id(tensor)])


def launch(run: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Call what no operation of torch is; it is on the tape that this thread records, if it records one."""
    tape = _get_current_dispatch_mode()
    if isinstance(tape, Tape):
        tape.launch(run, *args, **kwargs)
    else:
        run(*args, **kwargs)


def record_launches(patch: pytest.MonkeyPatch) -> None:
    """Have kernels of Triton, which are interpreted, on tapes."""
    run = Launcher.__call__
    patch.setattr(Launcher, "__call__", lambda *given, **how: launch(run, *given, **how))


class FixedAttention:
    """Attention over all pages that a sequence may ever have, so that shapes say nothing of contexts.
    Implements `workers.attention.backend.AttentionBackend`.
    """

    capturable = True

    def __init__(
        self, cache: KVCache, max_step_tokens: int, max_sequences: int, max_pages: int, *_: object
    ) -> None:
        self.cache, self._max_pages = cache, max_pages
        max_sequences += 8  # a load measures with more, short ones
        self.sizes = dict.fromkeys(("place", "row", "position"), max_step_tokens)
        for number in range(len(cache.groups)):
            self.sizes |= {f"page_{number}": max_step_tokens, f"table_{number}": max_sequences * max_pages}

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        positions = [range(each.start, each.end) for each in segments]
        arrays = {
            "position": array("q", [position for each in positions for position in each]),
            "place": array("q", [position % PAGE_SIZE for each in positions for position in each]),
            "row": array("q", [row for row, each in enumerate(positions) for _ in each]),
        }
        for number in range(len(self.cache.groups)):
            tables = [[page if page >= 0 else 0 for page in each.slot.tables[number]] for each in segments]
            padded = [table + [0] * (self._max_pages - len(table)) for table in tables]
            arrays[f"table_{number}"] = array("q", [page for table in padded for page in table])
            arrays[f"page_{number}"] = array(
                "q",
                [
                    table[position // PAGE_SIZE]
                    for table, each in zip(padded, positions, strict=True)
                    for position in each
                ],
            )
        return arrays

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors

    def run(
        self,
        prepared: dict[str, Tensor],
        layer: int,
        q: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        number, kv = self.cache.group_of[layer], self.cache.layers[layer]
        write_kv(kv, keys, values, prepared[f"page_{number}"], prepared["place"])
        tables = prepared[f"table_{number}"].view(-1, self._max_pages)[prepared["row"]]
        all_keys, all_values = (each[tables].transpose(2, 3).flatten(1, 2).transpose(1, 2) for each in kv)
        group = q.shape[1] // all_keys.shape[1]
        queries = q.unflatten(1, (-1, group))  # [tokens, kv_heads, group, head_dim]
        scores = queries @ all_keys.transpose(2, 3) / math.sqrt(q.shape[-1])
        places = torch.arange(self._max_pages * PAGE_SIZE)
        position = prepared["position"][:, None]
        hidden = places > position
        if window := self.cache.groups[number].window:
            hidden |= places <= position - window
        weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        return (weights @ all_values).flatten(1, 2)


def record_steps(patch: pytest.MonkeyPatch) -> Recorder:
    """Have engines that are loaded while `patch` holds record their steps of single tokens, as on a GPU.

    Returns:
        What records them.
    """
    recorder = Recorder()
    record_launches(patch)
    patch.setattr(model_runner, "graph_device", lambda device: recorder)
    patch.setattr(model_runner, "attention_over", FixedAttention)
    return recorder


def requests(count: int = 10):
    """Of all kinds, that end one after the other."""
    found = [*unlike_requests(count)]
    for number, submit in enumerate(found):
        submit.prompt, submit.max_tokens = submit.prompt[: 4 * 40], 5 + 4 * number
    return found
