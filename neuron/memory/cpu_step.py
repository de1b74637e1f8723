"""What the largest step takes of a CPU's memory: the most of its tensors that are there at one moment.

That is in attention, in the MLP, while tokens of a prompt are told of, or in the draw; and beside each what
waits for it. It is the step of `workers/execution/memory.py` (`largest_step`) in sizes alone;
`tests/workers/test_memory.py` and `benchmarks/planned_memory.py` hold it against what ranks measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from neuron.memory.largest_step import FLOAT, LONG, LONG_CONTEXT, WIDE_OF_XIELU, padded_bytes, prompts_of
from workers.checkpoints.experts import Experts
from workers.checkpoints.model_config import Latent, Mamba, ModelConfig
from workers.checkpoints.shares import WHOLE, Share

KEYS_AT_ONCE = 2048  # tokens of context whose keys attention over a prompt gathers in one piece
FEW_QUERIES, FEW_BYTES = 32, 8 << 20  # of each key, and keys and values that so few read at once
BLOCK_SCORES, FEWEST_QUERIES = 1 << 20, 16  # scores at once, of as many queries at least
SCORE_BYTES = 12  # of each: itself, its weight, and that of the block before or what its sum is made of
PAIRS = 1024  # of a token and an expert that it goes to, whose numbers are in memory at once
CHUNK, CONVOLVED = 32, 128  # tokens of a prompt that go through a state together, and through its convolution
SPACE_CHUNK = 64  # the same of Mamba-2
TOLD_BYTES = 2 * FLOAT  # of each of these: itself, and its log-probability
COMPARED_ROWS = 8  # of them, looked through at once for those that are as probable
COMPARED_BYTES = FLOAT + 1 + LONG  # a copy, whether it is, and that to be added up
SORTED_LOGITS = 5 << 18  # at once, for the draw of tokens
SORTED_BYTES = 41  # for each of these logits: values, ids, probabilities and what becomes of them, in float64
LITTLE = 1 << 20  # bytes of all that is small by itself: positions, pages, what products keep
COMPILED_ACTIVATIONS = ("silu", "gelu_tanh")


class CpuKernels(NamedTuple):
    """What a CPU computes with, as far as memory goes.

    Args:
        compiled: what is computed between products has no copies in float32.
        attends: prompts attend in a kernel that needs results alone.
        exact: prompts attend to the same bits in any company (`workers.attention.exact`).
        copied: bytes of each number of their inputs that products have a copy of.
        opens: the product that makes gates opens them as well.
    """

    compiled: bool = False
    attends: bool = False
    exact: bool = False
    copied: int = 0
    opens: bool = False


TORCH_ALONE = CpuKernels()


@dataclass(frozen=True, slots=True)
class CpuStep:
    """Of the first rank.

    Args:
        shapes: of the whole model.
        itemsize: bytes of an activation.
        share: of it, that the rank has.
        tokens: of the step.
        sequences: in it.
        context_length: of each, at most.
        ranks: that share the model.
        widest: the share of the one of them that has most.
    """

    shapes: ModelConfig
    itemsize: int
    share: Share
    tokens: int
    sequences: int
    context_length: int
    kernels: CpuKernels = TORCH_ALONE
    ranks: int = 1
    widest: Share = WHOLE

    def most(self) -> int:
        """Bytes at one moment."""
        beside = (
            0 if self.shapes.multipliers is None else self.tokens * self.shapes.hidden_size * self.itemsize
        )
        mixers = max(self._attention() + beside, self._states())
        made = 3 * self._inputs  # what they are made of, before layers run
        layers = self._stays() + max(mixers, self._mlp(), made, self._spread())
        if self.shapes.bidirectional or not self.shapes.writes:  # there are no logits
            return layers + LITTLE
        hidden = self.tokens * self.shapes.hidden_size * self.itemsize
        return max(layers, hidden + max(self._told(), self._sampling())) + LITTLE

    @property
    def _prompts(self) -> list[int]:
        return prompts_of(self.tokens, self.sequences, self.context_length)

    def _stays(self) -> int:
        """While layers run: angles, the inputs of all layers, and all predictions."""
        shapes, angles = self.shapes, self.shapes.rotary_dim
        if shapes.window_rope is not None:
            angles += shapes.window_rotary_dim or shapes.rotary_dim
        found = self.tokens * angles * 2 * FLOAT
        if shapes.per_layer is not None:
            found += self._inputs
        if shapes.altup is not None:
            found += shapes.altup.predictions * self.tokens * shapes.hidden_size * self.itemsize
        return found

    @property
    def _inputs(self) -> int:
        """Of all layers."""
        each = self.shapes.per_layer
        return 0 if each is None else self.tokens * self.shapes.num_layers * each.size * self.itemsize

    def _spread(self) -> int:
        """While others are made of one prediction, in float32, or all of the last ones, and corrected."""
        if (altup := self.shapes.altup) is None:
            return 0
        hidden = self.tokens * self.shapes.hidden_size
        wide = 0 if self.itemsize == FLOAT else 2 * FLOAT
        return hidden * max(
            (altup.predictions - 1) * (self.itemsize + wide), (altup.predictions + 3) * self.itemsize
        )

    # --- before the MLP ---------------------------------------------------------------------------------

    def _attention(self) -> int:
        """While queries and keys are turned, while they attend, or when all have; of an encoder, all."""
        shapes, size, tokens = self.shapes, self.itemsize, self.tokens
        heads = self.share.of(shapes.head_counts[-1])
        queries = heads * max(layer.head_dim or shapes.head_dim for layer in shapes.layers)
        if shapes.latent is not None:
            return self._latent(shapes.latent, heads)
        kv_heads = {self.share.kv_heads(layer.kv_heads) * layer.head_dim for layer in shapes.layers}
        keys = max(kv_heads)
        projected = tokens * (2 * shapes.hidden_size + queries + 2 * keys) * size
        if shapes.bidirectional:
            rotated = 3 * (queries + keys) * FLOAT
            attended = queries * (size + 2 * FLOAT)
            gathered = KEYS_AT_ONCE * keys * (4 * size + FLOAT)
            return projected + tokens * (rotated + attended) + gathered + SCORE_BYTES * BLOCK_SCORES
        turned, copied = 0, 0
        if not self._turns_in_place:
            turned = (3 if size == FLOAT else 4) * (queries + keys) * FLOAT
            copied = (queries + keys) * (FLOAT if size == FLOAT else FLOAT + size)
        if (
            shapes.qk_norm == "with_values"
        ):  # all that is projected is made float32, and goes when it is turned
            wide = 0 if size == FLOAT else (queries + 2 * keys) * FLOAT - (queries + keys) * size
            turned, copied = 3 * (queries + keys) * FLOAT + wide, 0
        found, attended = projected + tokens * copied, tokens * queries * size
        prompt = max(self._prompts, default=1)
        narrowed = 0 if size == FLOAT else prompt * queries * size
        over = self._over_keys(prompt, heads, keys, keys)
        # what takes the results has no memory before they come; in 16 bits products with values have as much
        beside = 0 if size == FLOAT else attended
        attending = beside + prompt * queries * FLOAT + max(over, narrowed)
        if self.kernels.attends:
            attending = attended + prompt * queries * size
        if self.kernels.exact:
            attending = attended + self._exactly(prompt, queries, keys)
        gates = 0 if shapes.attention_gate == "none" else 2 * attended
        if shapes.attention_gate == "heads":
            gates = 2 * tokens * heads * size
        return max(
            projected + tokens * turned,
            found + attending,
            found + attended + gates + tokens * shapes.hidden_size * size + self._copied(queries),
        )

    def _latent(self, latent: Latent, heads: int) -> int:
        """While latent vectors are attended over, by queries that are as wide."""
        key, size = latent.rank + latent.rope_dim, self.itemsize
        tokens, hidden = self.tokens, self.shapes.hidden_size
        compressed = key + 2 * (latent.query_rank or 0)
        queries = heads * (latent.plain_dim + latent.rope_dim + key)
        found = tokens * (2 * hidden + compressed + key + queries) * size
        prompt = max(self._prompts, default=1)
        if self.kernels.attends:
            return found + 2 * prompt * heads * latent.rank * size
        wide = prompt * heads * latent.rank * FLOAT
        narrowed = 0 if size == FLOAT else prompt * heads * latent.rank * size
        return found + wide + max(self._over_keys(prompt, heads, key, latent.rank), narrowed)

    def _exactly(self, prompt: int, queries: int, keys: int) -> int:
        """Of a prompt that attends exactly: keys and values of its context, and its queries and results, all
        in float32, with copies."""
        context = max(prompt, min(self.context_length, LONG_CONTEXT))
        kept = 2 * context * keys * FLOAT
        results = prompt * queries * (2 * FLOAT + self.itemsize)
        return (
            kept + prompt * queries * FLOAT + max(context * keys * FLOAT, SCORE_BYTES * BLOCK_SCORES, results)
        )

    def _over_keys(self, prompt: int, heads: int, keys: int, values: int) -> int:
        """What a prompt takes that attends over its context: keys in float32, unless they have few queries,
        values, and scores."""
        context, size = max(prompt, min(self.context_length, LONG_CONTEXT)), self.itemsize
        first, wide = min(context, KEYS_AT_ONCE), FLOAT
        if prompt * heads * self.shapes.head_dim <= FEW_QUERIES * keys:
            wide, first = size, min(context, max(first, FEW_BYTES // ((keys + values) * size)))
        queries = min(prompt, max(FEWEST_QUERIES, BLOCK_SCORES // (heads * first)))
        scores = heads * queries * first
        held = first * (keys * wide + values * size)
        found = held + scores * SCORE_BYTES
        if second := min(context - first, KEYS_AT_ONCE):  # whose keys are made while the first are there
            made = second * keys * (size + wide)
            found = max(found, held + made + scores * (FLOAT + size))
        return found

    @property
    def _turns_in_place(self) -> bool:
        """Whether queries and keys are normed and turned where they are."""
        norms = self.shapes.qk_norm in ("none", "heads")
        return self.kernels.compiled and norms and not self.shapes.interleaved

    def _states(self) -> int:
        """Of a layer that keeps a state: while sequences with one token have copies of theirs, while those of
        a prompt go through, some at a time, or while what comes of that goes through its gates."""
        stream = 2 * self.tokens * self.shapes.hidden_size * self.itemsize
        if (convolution := self.shapes.convolution) is not None:
            channels = convolution.on_rank(self.share).channels
            return stream + self.tokens * channels * (4 * self.itemsize + 4 * FLOAT)
        if self.shapes.mamba is not None:
            return stream + self._mamba(self.shapes.mamba.on_rank(self.share))
        if self.shapes.delta is None:
            return 0
        delta = self.shapes.delta.on_rank(self.share)
        values, keys = delta.value_heads * delta.value_dim, delta.key_heads * delta.key_dim
        projected = (delta.channels + values + 2 * delta.value_heads) * self.itemsize
        through = (delta.channels + 2 * delta.value_heads) * FLOAT
        state, block = values * delta.key_dim, min(self.tokens, CONVOLVED)
        copied = (self.sequences - 1) * (state + 2 * delta.kernel * delta.channels)
        chunk = min(block, CHUNK) * delta.value_heads * (3 * (delta.key_dim + delta.value_dim) + 5 * CHUNK)
        chunked = block * (delta.channels + 3 * keys) + chunk
        # what takes the results has no memory before they come
        convolved = block * (3 * delta.channels - values)
        once = max(copied, self.tokens * values + state + max(convolved, chunked))
        if self.kernels.exact:  # token after token, sequence after sequence
            once = self.tokens * values + 2 * state
        gated = self.tokens * values * (self.itemsize + 2 * FLOAT)
        return stream + self.tokens * projected + max(self.tokens * through + once * FLOAT, gated)

    def _mamba(self, mamba: Mamba) -> int:
        """The same of Mamba-2."""
        inner, channels = mamba.inner, mamba.channels
        state, block = mamba.state_size - (mamba.kernel - 1) * channels, min(self.tokens, CONVOLVED)
        copied = (self.sequences - 1) * (state + 2 * mamba.kernel * channels + 3 * inner)
        chunk = min(block, SPACE_CHUNK)
        chunked = block * channels + chunk * ((mamba.heads + mamba.groups) * chunk + 4 * inner)
        # what takes the results has no memory before they come
        convolved = block * (3 * channels - inner)
        once = max(copied, self.tokens * inner + state + max(convolved, chunked))
        if self.kernels.exact:  # token after token, sequence after sequence
            once = self.tokens * inner + 2 * state
        mixed = 0 if self.itemsize == FLOAT else self.tokens * channels
        gated = 3 * self.tokens * inner
        through = 2 * self.tokens * mamba.heads + max(mixed + once, gated)
        return self.tokens * mamba.projected * self.itemsize + through * FLOAT

    # --- the MLP ----------------------------------------------------------------------------------------

    def _mlp(self) -> int:
        """What comes in, with what attention adds, and normed, and what is made of it."""
        hidden, size = self.tokens * self.shapes.hidden_size * self.itemsize, self.itemsize
        inner = self.share.of(max(self.shapes.inner_sizes))
        experts, made = self.shapes.experts, 0
        if self.shapes.has_mlps:
            made = self._gated(inner)
        if any(self.shapes.sparsity) and size != FLOAT:  # gates are closed in float32
            made = max(made, self.tokens * inner * (2 * size + FLOAT))
        if self.shapes.activation == "xielu":
            made += self.tokens * WIDE_OF_XIELU * inner * FLOAT
        if experts is not None:
            beside = self._gated(self.share.of(experts.shared_size)) if experts.shared_size else 0
            held = hidden if experts.shared_size else 0  # what that made, while the others run
            made = max(made, self._routed(experts) + held, beside)
            if experts.beside_mlp:
                made += self.tokens * self.shapes.hidden_size * size
        return 3 * hidden + made

    def _gated(self, inner: int) -> int:
        """Gates and what they open, and what comes of both; or what comes of that."""
        shapes, tokens, size = self.shapes, self.tokens, self.itemsize
        is_compiled = self.kernels.compiled and shapes.activation in COMPILED_ACTIVATIONS
        opened = 1 if is_compiled or not shapes.gates else 2
        first = shapes.hidden_size
        scaled = shapes.multipliers is not None and shapes.multipliers.gates != 1
        if self.kernels.opens and is_compiled and shapes.gates and not scaled:
            made = tokens * inner * size + self._copied(first)
        else:
            made = tokens * (1 + shapes.gates) * inner * size
            made += max(tokens * opened * inner * size, self._copied(first))
        return max(made, tokens * (inner + first) * size + self._copied(inner))

    def _copied(self, columns: int) -> int:
        """Of what goes into a product."""
        return self.tokens * columns * self.kernels.copied

    def _routed(self, experts: Experts) -> int:
        """Of experts whose pairs of a token and an expert are taken together: all tokens may choose one."""
        whole = experts.whole_in(self.share.parts)
        inner = experts.intermediate_size if whole else self.share.of(experts.intermediate_size)
        hidden, size = self.shapes.hidden_size, self.itemsize
        pairs = max(self.tokens, min(PAIRS, self.tokens * experts.chosen))
        summed = self.tokens * hidden * FLOAT
        up = pairs * (max(hidden + (1 + self.shapes.gates) * inner, 3 * inner) + inner) * size
        down = pairs * ((inner + hidden) * size + hidden * FLOAT)
        return summed + max(up, down, self.tokens * hidden * size)

    # --- tokens -----------------------------------------------------------------------------------------

    def _logits(self, rows: int) -> int:
        """While they are made: in the type of the model and in float32. Before that a rank's own are padded,
        and gloo has those of all ranks in one piece, and a copy of each."""
        made = self.shapes.vocab_size * (self.itemsize + FLOAT)
        if self.ranks > 1:
            gathered = (1 + 2 * self.ranks) * self.widest.of(self.shapes.vocab_size) * self.itemsize
            made = max(made, gathered)
        return rows * made

    def _told(self) -> int:
        rows = self._prompts[0] - 1 if self._prompts else 0  # what follows the last one is not known
        logits = rows * self.shapes.vocab_size * (TOLD_BYTES + padded_bytes(self.shapes.vocab_size))
        compared = min(rows, COMPARED_ROWS) * self.shapes.vocab_size * COMPARED_BYTES
        return max(self._logits(rows), logits + compared)

    def _sampling(self) -> int:
        """Of all logits, as they are and as settings change them; some of which are sorted."""
        rows, vocabulary = self.sequences - 1 + len(self._prompts), self.shapes.vocab_size
        at_once = min(max(1, self.sequences - 1), max(1, SORTED_LOGITS // vocabulary))
        padded = rows * padded_bytes(vocabulary)
        return max(self._logits(rows), (2 * rows * FLOAT + max(padded, at_once * SORTED_BYTES)) * vocabulary)
