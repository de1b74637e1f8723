"""What a rank takes of its device besides weights and KV pages, as far as is known before it measured it.

A worker measures both parts when it loads, and sizes its pool by that (`workers/execution/memory.py`). What
is planned here only has to be near it: it decides which devices have room, and how much of them is promised
meanwhile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ipc.worker_messages import CONTEXT_BYTES, GRAPH_BYTES, KERNEL_BYTES
from neuron.memory.gpu_step import WIDE_OF_XIELU, GpuStep
from workers import checkpoints
from workers.checkpoints.caches import SPARE_STATES
from workers.checkpoints.card import Dtype
from workers.checkpoints.config import ModelConfig
from workers.checkpoints.layers import kv_heads_on_rank
from workers.checkpoints.vision import REMEMBERED_BYTES, Vision

# A process with torch imported and a device's context made, by kind of device, until one was measured. Builds
# differ: on Linux torch 2.13 for the CPU alone takes 156 MB that it shares with nobody, one for CUDA 300 MB.
UNMEASURED_BYTES = {"cpu": 300_000_000, "cuda": CONTEXT_BYTES}

FLOAT = 4  # bytes of a float32
KEYS_AT_ONCE = 2048  # tokens of context whose keys attention over a prompt gathers in one piece
PAIRS = 1024  # of a token and an expert that it goes to, whose numbers are in memory at once
CHUNK, CHUNKED_AT_ONCE = 64, 128  # tokens of a prompt that go through a state together
SCORES = 12 << 20  # bytes of attention scores, their weights and their mask
TOLD_ROWS = 64  # of logits at once, for the log-probabilities of a prompt
SORTED_LOGITS = 5 << 18  # at once, for the draw of tokens
SORTED_BYTES = 40  # for each of these logits: values, ids, probabilities and what becomes of them, in float64
TOLD_BYTES = 2 * FLOAT  # for each of the logits that a prompt is told of
LEAST_PENALISED = 4  # sequences that there is room for
LITTLE = 4 << 20  # bytes of all that is small by itself: angles, positions, pages, what a router has
MTP_STREAMS = 4  # hidden states: of the model, beside the layer of a head, and what is joined before that
PENALTY_BYTES = 3  # for each logit, kept: how often its token came, and whether at all

CPU_FACTS = Path("/proc/cpuinfo")
ARM_INSTRUCTIONS = {"bfloat16": {"bf16"}, "float16": {"fphp", "asimdhp"}}
COMPILED_CPUS = {"avx2", "fma", "f16c"}  # for which there are kernels (`workers/kernels/compiled.py`)
COMPILED_ACTIVATIONS = ("silu", "gelu_tanh")
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
        world_size: ranks.
        packs_head: whether a tied head is packed on a CPU; one that is kept in blocks is not.
        vision: of a model that sees.
        context_length: of a sequence, which an image has to fit into; 0: that of the model.
        in_blocks: weights are kept quantised.
        compiled: what a CPU computes between products has no copies in float32 (`is_compiled`).
    """

    shapes: ModelConfig
    itemsize: int
    world_size: int
    packs_head: bool = True
    vision: Vision | None = None
    context_length: int = 0
    in_blocks: bool = False
    compiled: bool = False

    def of_step(self, kind: str, tokens: int, sequences: int) -> int:
        """Bytes that a rank takes for steps of `tokens` that sample for `sequences`, on a CPU or a GPU."""
        if kind == "cpu":
            step, kept = self._on_cpu(tokens, sequences), KERNEL_BYTES
            if not self.shapes.bidirectional:
                kept += self._packed_head()
        else:
            context_length = self.context_length or self.shapes.context_length
            sizes = self.shapes, self.itemsize, self.world_size, tokens, sequences, context_length
            step, kept = GpuStep(*sizes, self.in_blocks).run().reserved, 0
            if not self.shapes.bidirectional:
                kept = GRAPH_BYTES + sequences * self.shapes.vocab_size * FLOAT
            kept += SPARE_STATES[kind] * self._state_bytes
        if self.vision is not None:  # which looks beside steps, and not while one runs
            look = self.vision.look_bytes(self.itemsize, self.context_length, kind)
            step = max(step, look.piece) + look.kept
            kept += REMEMBERED_BYTES if kind == "cpu" else 0
        return step + kept + self._mtp(tokens)

    def _on_cpu(self, tokens: int, sequences: int) -> int:
        """Of layers, or of logits, which come when those let go of theirs; and of penalties, which stay."""
        mixers = max(self._attention(tokens), self._states(tokens))
        layers = max(mixers, self._mlp(tokens)) + self._inputs(tokens) + LITTLE
        if self.shapes.bidirectional:  # there are no logits
            return layers
        return max(layers, self._told(tokens), self._sampling(sequences)) + self._penalties(sequences)

    def _mtp(self, tokens: int) -> int:
        """Of a head that predicts the token after the next, while its layer runs: what it is made of."""
        return MTP_STREAMS * tokens * self.shapes.hidden_size * self.itemsize if self.shapes.mtp else 0

    @property
    def _state_bytes(self) -> int:
        """Of all layers that keep one."""
        return FLOAT * sum(layer.state_size for layer in self.shapes.layers) // self.world_size

    def _attention(self, tokens: int) -> int:
        """Of a layer before its MLP: while queries and keys are turned, or while they attend, whichever is
        more; of one that is not a decoder's, or has latent vectors, both."""
        shapes, size = self.shapes, self.itemsize
        heads = shapes.num_heads // self.world_size
        queries = heads * max(layer.head_dim or shapes.head_dim for layer in shapes.layers)
        if (latent := shapes.latent) is not None:  # for which a query is as wide as what is kept of a token
            keys = latent.rank + latent.rope_dim
            queries += heads * keys
        else:
            keys = max(
                kv_heads_on_rank(layer.kv_heads, self.world_size) * layer.head_dim for layer in shapes.layers
            )
        stream = 2 * shapes.hidden_size * size
        projected = (queries + 2 * keys) * size
        if shapes.bidirectional or latent is not None:
            rotated = 3 * (queries + keys) * FLOAT
            attended = queries * (size + 2 * FLOAT)
            gathered = KEYS_AT_ONCE * keys * (4 * size + FLOAT)
            return tokens * (stream + projected + rotated + attended) + gathered + SCORES
        turned, copied = 0, 0
        if not self._turns_in_place:
            turned = 4 * (queries + keys) * FLOAT
            copied = (queries + keys) * (FLOAT if size == FLOAT else FLOAT + size)
        attended = queries * (size + FLOAT)
        gathered = 2 * KEYS_AT_ONCE * keys * FLOAT
        return max(
            tokens * (stream + projected + turned),
            tokens * (stream + projected + copied + attended) + gathered + SCORES,
            tokens * (stream + projected + copied + 2 * attended),
        )

    @property
    def _turns_in_place(self) -> bool:
        """Whether queries and keys are normed and turned where they are."""
        norms = self.shapes.qk_norm in ("none", "heads")
        return self.compiled and norms and not self.shapes.interleaved

    def _states(self, tokens: int) -> int:
        """Of a layer that keeps a state: what goes through its convolution, and 64 tokens at a time."""
        if (convolution := self.shapes.convolution) is not None:
            channels = convolution.on_rank(self.world_size).channels
            return tokens * (2 * self.shapes.hidden_size + channels * (6 * self.itemsize + 5 * FLOAT))
        if self.shapes.delta is None:
            return 0
        delta = self.shapes.delta.on_rank(self.world_size)
        through = tokens * delta.channels * (2 * self.itemsize + 3 * FLOAT)
        each = 4 * (delta.key_dim + delta.value_dim) + 4 * CHUNK
        return through + min(tokens, CHUNKED_AT_ONCE) * delta.value_heads * each * FLOAT

    def _mlp(self, tokens: int) -> int:
        hidden, inner, size = self.shapes.hidden_size, self.shapes.intermediate_size, self.itemsize
        inner *= 2 if self.shapes.double_wide else 1
        # what comes in, with what attention adds, normed, and what comes out; gates, what they open, and both
        wide = 3 if self.compiled and self.shapes.activation in COMPILED_ACTIVATIONS else 4
        dense = tokens * (4 * hidden + wide * inner // self.world_size) * size
        if self.shapes.activation == "xielu":
            dense += tokens * WIDE_OF_XIELU * inner // self.world_size * FLOAT
        if (experts := self.shapes.experts) is None:
            return dense
        ranks = 1 if experts.whole_on(self.world_size) else self.world_size
        inner = experts.intermediate_size // ranks
        pairs = tokens + PAIRS  # all tokens may choose the same expert
        routed = pairs * ((2 * hidden + 3 * inner) * size + hidden * FLOAT)
        shared = tokens * 4 * experts.shared_size // self.world_size * size
        return max(dense, tokens * hidden * (2 * size + FLOAT) + max(routed, shared))

    def _inputs(self, tokens: int) -> int:
        """Of all layers, which are there while these run, and what they are made of."""
        if (inputs := self.shapes.per_layer) is None:
            return 0
        return 3 * tokens * self.shapes.num_layers * inputs.size * self.itemsize

    def _told(self, tokens: int) -> int:
        return min(tokens, TOLD_ROWS) * self.shapes.vocab_size * (self.itemsize + TOLD_BYTES)

    def _sampling(self, sequences: int) -> int:
        logits = sequences * self.shapes.vocab_size
        return logits * (self.itemsize + 2 * FLOAT) + min(logits, SORTED_LOGITS) * SORTED_BYTES

    def _penalties(self, sequences: int) -> int:
        """For a power of two of them."""
        room = max(LEAST_PENALISED, 1 << (sequences - 1).bit_length())
        return room * self.shapes.vocab_size * PENALTY_BYTES

    def _packed_head(self) -> int:
        """A tied head, packed for oneDNN, is a copy of the embedding."""
        if not (self.shapes.tied_head and self.shapes.writes and self.packs_head):
            return 0
        rows = -(-self.shapes.vocab_size // self.world_size)
        return rows * self.shapes.hidden_size * self.itemsize
