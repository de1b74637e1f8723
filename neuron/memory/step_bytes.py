"""What a rank takes of its device besides weights and KV pages, as far as is known before it measured it.

A worker measures both parts when it loads, and sizes its pool by that (`workers/execution/memory.py`). What
is planned here only has to be near it: it decides which devices have room, and how much of them is promised
meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ipc.model_settings import Dtype, KVCacheDtype
from ipc.worker_messages import CONTEXT_BYTES, GRAPH_BYTES, KERNEL_BYTES
from neuron.memory.cpu_step import TORCH_ALONE, CpuKernels, CpuStep
from neuron.memory.gpu_step import GpuStep
from workers import checkpoints
from workers.checkpoints.caches import SPARE_STATES
from workers.checkpoints.card import DTYPE_BYTES
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.shares import WHOLE, Share
from workers.checkpoints.vision import REMEMBERED_BYTES, Vision

# A process with torch imported and a device's context made, by kind of device, until one was measured. Builds
# differ: on Linux torch 2.13 for the CPU alone takes 156 MB that it shares with nobody, one for CUDA 300 MB.
UNMEASURED_BYTES = {"cpu": 300_000_000, "cuda": CONTEXT_BYTES}

FLOAT = 4  # bytes of a float32
LEAST_PENALISED = 4  # sequences that there is room for
MTP_STREAMS = 4  # hidden states: of the model, beside the layer of a head, and what is joined before that
PENALTY_BYTES = 3  # for each logit, kept: how often its token came, and whether at all

CPU_FACTS = Path("/proc/cpuinfo")
ARM_INSTRUCTIONS = {"bfloat16": {"bf16"}, "float16": {"fphp", "asimdhp"}}
COMPILED_CPUS = {"avx2", "fma", "f16c"}  # for which there are kernels (`workers/kernels/compiled.py`)
MULTIPLYING_CPUS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}  # for which there are more
WIDENED = ("INT8_", "FP8_", "NF4_", "FP4_", "NVFP4")  # formats of which products make float32 of many inputs,
LAID = {"INT8_128", "INT8_ROW", "FP8_128", "FP8_ROW"}  # but of these, there, copies that are laid out anew
KERNELS = Path(checkpoints.__file__).parents[1] / "kernels"


def packs_head(dtype: Dtype) -> bool:
    """Whether a head that is tied to the embedding is packed on a CPU like this one.

    In 16 bits that is so on ARM alone; elsewhere a kernel of ours is meant to read the embedding. What oneDNN
    has there is known where there is torch; here the kernel's list of instructions has to do.
    """
    if dtype == "float32":
        return True
    return ARM_INSTRUCTIONS[dtype] <= _listed("Features")


def is_compiled(dtype: Dtype) -> bool:
    """Whether what a step of that type computes between its products is compiled, for a CPU like this one."""
    if dtype == "float32":
        return False
    return _listed("flags") >= COMPILED_CPUS and any(KERNELS.glob("_blocks*.so"))


def kernels_of(
    dtype: Dtype,
    formats: Collection[str] = (),
    *,
    exact: bool = False,
    kv_cache_dtype: KVCacheDtype | None = None,
    adapters: bool = False,
) -> CpuKernels:
    """What a CPU like this one computes with, where weights have these formats, or none."""
    compiled = is_compiled(dtype)
    multiplies = dtype == "bfloat16" and compiled and _listed("flags") >= MULTIPLYING_CPUS
    laid = LAID.intersection(formats) if multiplies else set()
    lays = multiplies and not formats and not exact and "amx_tile" not in _listed("flags")
    copied = 0
    if dtype != "float32" and any(name.startswith(WIDENED) for name in {*formats} - laid):
        copied = FLOAT
    elif laid or lays:
        copied = DTYPE_BYTES[dtype]
    attends = multiplies and not exact and kv_cache_dtype is None
    return CpuKernels(compiled, attends, exact, copied, opens=lays and not adapters)


def _listed(name: str) -> set[str]:
    """What the kernel says that this CPU has: `flags` of x86, `Features` of ARM."""
    lists = re.findall(rf"^{name}\s*:(.*)$", CPU_FACTS.read_text(), re.MULTILINE)
    return set(lists[0].split()) if lists else set()


@dataclass(frozen=True, slots=True)
class Overhead:
    """Of one rank.

    Args:
        shapes: of the whole model.
        itemsize: bytes of a weight.
        share: of it, that the rank has.
        packs_head: whether a tied head is packed on a CPU; one that is kept in blocks is not.
        vision: of a model that sees.
        context_length: of a sequence, which an image has to fit into; 0: that of the model.
        in_blocks: weights are kept quantised.
        kernels: what a CPU computes with (`kernels_of`).
        ranks: that share the model.
        widest: the share of the one of them that has most.
    """

    shapes: ModelConfig
    itemsize: int
    share: Share
    packs_head: bool = True
    vision: Vision | None = None
    context_length: int = 0
    in_blocks: bool = False
    kernels: CpuKernels = TORCH_ALONE
    ranks: int = 1
    widest: Share = WHOLE

    def of_step(self, kind: str, tokens: int, sequences: int, guesses: int = 0) -> int:
        """Bytes that a rank takes for steps of `tokens` that sample for `sequences`, on a CPU or a GPU.

        Args:
            guesses: tokens that are guessed, whose logits come beside those of `sequences`.
        """
        context_length = self.context_length or self.shapes.context_length
        sequences += 0 if kind == "cpu" else guesses
        sizes = self.shapes, self.itemsize, self.share, tokens, sequences, context_length
        if kind == "cpu":
            step, kept = CpuStep(*sizes, self.kernels, self.ranks, self.widest).most(), KERNEL_BYTES
            step += guesses * self.shapes.vocab_size * (2 * FLOAT + self.itemsize)  # as it is measured
            if not self.shapes.bidirectional:
                kept += self._packed_head() + self._penalties(sequences)
        else:
            step, kept = GpuStep(*sizes, self.in_blocks, self.ranks, self.widest).run().reserved, 0
            if not self.shapes.bidirectional:
                kept = GRAPH_BYTES + sequences * self.shapes.vocab_size * FLOAT
            kept += SPARE_STATES[kind] * self._state_bytes
        if self.vision is not None:  # which looks beside steps, and not while one runs
            look = self.vision.look_bytes(self.itemsize, self.context_length, kind)
            step = max(step, look.piece) + look.kept
            kept += REMEMBERED_BYTES if kind == "cpu" else 0
        return step + kept + self._mtp(tokens)

    def _mtp(self, tokens: int) -> int:
        """Of a head that predicts the token after the next, while its layer runs: what it is made of."""
        return MTP_STREAMS * tokens * self.shapes.hidden_size * self.itemsize if self.shapes.mtp else 0

    @property
    def _state_bytes(self) -> int:
        """Of all layers that keep one."""
        return FLOAT * sum(layer.state_on_rank(self.share) for layer in self.shapes.layers)

    def _penalties(self, sequences: int) -> int:
        """For a power of two of them."""
        room = max(LEAST_PENALISED, 1 << (sequences - 1).bit_length())
        return room * self.shapes.vocab_size * PENALTY_BYTES

    def _packed_head(self) -> int:
        """A tied head, packed for oneDNN, is a copy of the embedding."""
        if not (self.shapes.tied_head and self.shapes.writes and self.packs_head):
            return 0
        rows = self.share.of(self.shapes.vocab_size)
        return rows * self.shapes.hidden_size * self.itemsize
