"""What a step takes of a GPU, counted without one: fake tensors have sizes, and kernels what they write to.

Counted are the bytes that live at once, and what torch's allocator reserves for them as they come and go.
What libraries take for themselves (cuBLAS, sorting) is not seen.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import workers.kernels.planes_triton  # noqa: F401, whose tables are made as it is imported: of real tensors
from neuron.memory.allocator import Allocator, Block
from tests.workers.engines import make_spec
from workers.cache.paged import KVCache
from workers.checkpoints.card import ModelCard
from workers.checkpoints.vision import Vision
from workers.execution import head_drafts, model_runner
from workers.execution.memory import groups_of_few, largest_step
from workers.execution.model_runner import ModelRunner
from workers.kernels.launch import Launcher
from workers.models.mtp import MtpHead
from workers.models.registry import MODELS
from workers.models.stages import Stages
from workers.parallel import RankGroup, split_of
from workers.sampling.sampler import Sampler
from workers.vision.sight import tower
from workers.vision.tower import seen
from workers.weights.blocks import Empty

# what it is asked for of an H100's properties
HOPPER = SimpleNamespace(multi_processor_count=132, L2_cache_size=50 << 20)


class Counted(NamedTuple):
    """Bytes, beside weights and cache."""

    alive: int  # the most that lived at once
    reserved: int  # by torch's allocator


class Counting(TorchDispatchMode):
    """Sees the storages of fake tensors on a GPU come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator()
        self._known: dict[int, tuple[StorageWeakRef, Block]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and each.device.type == "cuda":
                self._see(each.untyped_storage())
        return found

    def _see(self, storage: Any) -> None:
        known = self._known.get(storage._cdata)
        if known is None or known[0].expired():  # whose address may be given again
            self.settle()
            block = self.allocator.allocate(storage.nbytes())
            self._known[storage._cdata] = StorageWeakRef(storage), block

    def settle(self) -> None:
        """Let those go that are no more."""
        for key, (storage, block) in list(self._known.items()):
            if storage.expired():
                del self._known[key]
                self.allocator.release(block)

    def most_of(self, run: Callable[[], object]) -> Counted:
        """What that takes beside what is there."""
        self.settle()
        memory = self.allocator
        memory.empty()
        alive, reserved = memory.alive, memory.reserved
        memory.most = alive
        run()
        return Counted(memory.most - alive, memory.reserved - reserved)


class FakeBuffers:
    """`InputBuffers` without what it copies from."""

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        self.sizes = dict(sizes)
        self._device = torch.empty(sum(sizes.values()), dtype=torch.int64, device=device)

    def fill(self, arrays: Mapping[str, array[int]]) -> dict[str, Tensor]:
        tensors, start = {}, 0
        for name, size in self.sizes.items():
            assert len(arrays[name]) <= size
            tensors[name] = self._device[start : start + len(arrays[name])]
            start += size
        return tensors


def _sent(values: Any, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(len(values), dtype=dtype, device=device)


def _zeros(x: FakeTensor) -> Any:
    rows = [0.0] * x.shape[-1]
    return rows if x.dim() == 1 else [rows] * len(x)


def _part(x: Tensor, key: Any) -> tuple[Tensor, list[Tensor | None]]:
    """`x[key]`, but for the tensors in `key`, which are left to be looked up, one for each dimension."""
    key = list(key) if isinstance(key, tuple) else [key]
    shown = sum(
        1 if getattr(each, "dtype", None) != torch.bool else each.dim() for each in key if each is not None
    )
    if any(isinstance(each, EllipsisType) for each in key):
        place = next(n for n, each in enumerate(key) if isinstance(each, EllipsisType))
        key[place : place + 1] = [slice(None)] * (x.dim() - shown + 1)
    dim, looked_up = 0, []
    for each in key:
        if each is None:
            x = x.unsqueeze(dim)
        elif isinstance(each, int):
            x = x.select(dim, each)
            continue
        elif isinstance(each, slice):
            start, stop, step = each.indices(x.shape[dim])
            x = torch.ops.aten.slice.Tensor(x, dim, start, max(start, stop), step)
        else:
            looked_up += [None] * (dim - len(looked_up))
            looked_up.append(
                each
                if isinstance(each, Tensor)
                else torch.empty(len(each), dtype=torch.int64, device=x.device)
            )
        dim += 1
    return x, looked_up


def _get(x: Tensor, key: Any) -> Tensor:
    x, looked_up = _part(x, key)
    return torch.ops.aten.index.Tensor(x, looked_up) if looked_up else x


def _set(x: Tensor, key: Any, value: Any) -> None:
    x, looked_up = _part(x, key)
    if looked_up:
        value = value if isinstance(value, Tensor) else torch.empty((), dtype=x.dtype, device=x.device)
        torch.ops.aten.index_put_.default(x, looked_up, value.to(x.dtype))
    elif isinstance(value, Tensor):
        torch.ops.aten.copy_.default(x, value)
    else:
        x.fill_(value)


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else torch.clone(x, memory_format=torch.contiguous_format)


@contextmanager
def _a_gpu() -> Iterator[None]:
    """Whoever asks finds a Hopper, on which kernels compute nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triton.runtime.jit.JITFunction.run", lambda *arguments, **options: None)
        patch.setattr(Launcher, "__call__", lambda *arguments, **options: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: HOPPER)
        for module in (model_runner, head_drafts):
            patch.setattr(module, "InputBuffers", FakeBuffers)
        patch.setattr("workers.sampling.sampler.fetched", lambda x: lambda: [0.0] * x.numel())
        for name in ("sampler", "edits", "penalties", "logprobs"):
            patch.setattr(f"workers.sampling.{name}.sent", _sent)
        patch.setattr("workers.execution.head_drafts.sent", _sent)
        patch.setattr(FakeTensor, "tolist", _zeros, raising=False)
        # a torch without CUDA knows fake tensors of a GPU, and all that can be done to them but this
        patch.setattr(FakeTensor, "__getitem__", _get, raising=False)
        patch.setattr(FakeTensor, "__setitem__", _set, raising=False)
        patch.setattr(FakeTensor, "contiguous", _contiguous, raising=False)
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    """What kernels remember of a device is of another one than this."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("workers.kernels.", "workers.weights.")):
            for each in list(vars(module).values()):
                if hasattr(each, "cache_clear"):
                    each.cache_clear()


def most_of_a_look(vision: Vision, rows: int, columns: int) -> Counted:
    """What a tower takes of a GPU while it looks at an image of so many pixels."""
    counting = Counting()
    with _a_gpu(), FakeTensorMode(allow_non_fake_inputs=True), counting, torch.inference_mode():
        eye = tower(vision, torch.bfloat16, torch.device("cuda:0"))
        image = torch.empty(rows, columns, 3, dtype=torch.uint8)
        return counting.most_of(lambda: seen(eye.look(image)))


class _Deaf(RankGroup):
    """The first of some ranks, that hears nothing of the others."""

    def _run(self, *collective: object) -> None:
        self.collectives += 1


@contextmanager
def on_a_gpu(card: ModelCard, **limits: Any) -> Iterator[ModelRunner]:
    """An engine on a GPU that computes nothing, within `limits`: as many layers as there are kinds of them,
    and a page and a state that all sequences have. Of several ranks it is the first."""
    spec = make_spec(device="cuda:0", **{"dtype": "bfloat16"} | limits)
    with _a_gpu(), FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        runner = ModelRunner(spec, card)
        split = split_of(spec)
        runner.group = _Deaf(0, split.ranks, "cuda:0", split=split)
        config, dtype = card.config.at_context(spec.context_length), getattr(torch, spec.dtype)
        formats = card.formats(split, spec.quantization)
        runner.model = MODELS[card.family](config, runner.group, dtype, formats)
        empty = Empty(dtype, runner.group.device, formats)
        runner.stages = Stages(card.stages, config.norm_eps, empty)
        if config.mtp:
            runner.mtp = MtpHead(runner.model, config, runner.group, empty)
        for shard in runner._parts():
            shard.finish()
        runner.sampler = Sampler(config.vocab_size, runner.group.device)
        runner.blocks = config.unlike_layers()
        groups = groups_of_few(config, runner.blocks)
        shapes = dict(enumerate(layer.shape_on_rank(runner.group.mine) for layer in config.layers))
        cache = KVCache(groups[:1], shapes, pages=1, dtype=dtype, device=runner.group.device)
        runner._attend_over(groups, cache, 1)
        runner.most_bytes = 1 << 60
        yield runner


def most_of_a_step(card: ModelCard, **limits: Any) -> Counted:
    """What the largest step of `limits` takes of a GPU beside weights and cache."""
    counting = Counting()
    with counting, on_a_gpu(card, **limits) as runner:
        step = largest_step(runner.spec, runner.sampler.block_rows, groups=len(runner.groups))
        return counting.most_of(lambda: runner.execute(step))
