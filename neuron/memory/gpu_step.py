"""What the largest step takes of a GPU: its tensors, in the order in which they come and go.

The neuron has no torch, so this is the step once more, in sizes alone: of layers of each kind, of what a
prompt is told of its tokens, and of the draw (`workers/execution/memory.py`, `largest_step`). What is small
beside the others is left out. `tests/workers/test_planned_steps.py` holds it against the step itself.
"""

from __future__ import annotations

from neuron.memory.allocator import Allocator, Block
from neuron.memory.largest_step import (
    FLOAT,
    LONG,
    LONG_CONTEXT,
    WIDE_OF_XIELU,
    padded_bytes,
    prompts_of,
)
from workers.checkpoints.experts import Experts
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.shares import WHOLE, Share

CUBLAS_BYTES = 32 << 20  # its workspace, on the cards that have the largest
SORT_BYTES = 36  # of each element that is sorted: its value and its place, three times
SPLIT, MOST_SPLITS = 64, 32  # keys of a part that attention over one token has at least, and parts at most
CHUNK, CHUNKS = 32, 64  # tokens of a prompt that go through a state together, and how many times at once
SPACE_CHUNK = 256  # the first of these of Mamba-2
SCRATCH_BYTES, TOGETHER = 64 << 20, 256  # of a weight in blocks, made plain at once, and its rows at least
# Tokens with which a weight is not made plain at all where no card's cache would hold it so, and such a cache
SOME, MOST_CACHE = 64, 128 << 20
PAIRS = 16_384  # of a token and an expert that it goes to, whose numbers are in memory at once
DRAWN = 5 << 20  # logits at once, for the draw of tokens


class GpuStep:
    """The largest step of the first rank.

    Args:
        shapes: of the whole model.
        itemsize: bytes of an activation.
        share: of it, that the rank has.
        tokens: of the step.
        sequences: in it.
        context_length: of each, at most.
        in_blocks: weights are kept quantised.
        ranks: that share the model.
        widest: the share of the one of them that has most.
    """

    def __init__(
        self,
        shapes: ModelConfig,
        itemsize: int,
        share: Share,
        tokens: int,
        sequences: int,
        context_length: int,
        in_blocks: bool = False,
        ranks: int = 1,
        widest: Share = WHOLE,
    ) -> None:
        self.shapes, self.itemsize, self.share = shapes, itemsize, share
        self.tokens, self.sequences, self.context_length = tokens, sequences, context_length
        self.in_blocks, self.ranks, self.widest = in_blocks, ranks, widest
        self.memory = Allocator()
        self._stream: list[Block] = []  # the residual one, and what is to be added to it

    def run(self) -> Allocator:
        """The memory after it."""
        self._new(CUBLAS_BYTES)
        angles = self._angles()
        self._stream, inputs = [self._embedded()], self._inputs()
        if self.shapes.altup is not None:
            self._spread()
        for number in self.shapes.unlike_layers():
            layer = self.shapes.layers[number]
            if self.shapes.altup is not None:
                self._altup_layer(number)
            elif layer.kind == "nothing":
                self._add_mlp(number)
            elif layer.kind == "state":
                self._state_layer(number)
            elif layer.state_size:
                self._both_layer(number)
            else:
                self._layer(number)
        whole = self._hidden()
        self._free(*self._stream)
        self._stream[:] = [whole]
        self._free(*angles, *inputs)
        if self.shapes.writes and not self.shapes.bidirectional:
            self._tell()
            self._draw()
        return self.memory

    def _embedded(self) -> Block:
        if not self.in_blocks:
            return self._hidden()
        hidden = self.shapes.hidden_size
        planes, stored = (self._new(self.tokens * hidden * 17 // 16) for _ in range(2))  # with their scales
        apart = [self._rows(hidden, 1) for _ in range(3)]
        self._free(*apart)
        numbers, wide = (self._rows(hidden, FLOAT) for _ in range(2))
        self._free(planes, stored, numbers)
        x = self._hidden()
        self._free(wide)
        return x

    def _angles(self) -> list[Block]:
        """Cosines and sines."""
        found, dims = [], [self.shapes.rotary_dim]
        if self.shapes.window_rope is not None:
            dims.append(self.shapes.window_rotary_dim or self.shapes.rotary_dim)
        for dim in dims:
            angle = self._rows(dim, FLOAT)
            found += [self._rows(dim, FLOAT) for _ in range(2)]
            self._free(angle)
        return found

    @property
    def _prompts(self) -> list[int]:
        return prompts_of(self.tokens, self.sequences, self.context_length)

    # --- layers -----------------------------------------------------------------------------------------

    def _layer(self, number: int) -> None:
        """Attention, then the MLP. Each adds to the residual stream, of which a part waits to be added by the
        next norm; encoders, whose layers are called with it, keep what it was before as well."""
        before = [self._hidden()] if self.shapes.bidirectional else []
        self._stream.append(self._latent() if self.shapes.latent is not None else self._attention(number))
        if not self.shapes.single:
            self._add_mlp(number)
        self._free(*before)

    def _spread(self) -> None:
        """Predictions of one, as large as that."""
        hidden = self.shapes.hidden_size
        others = (self.shapes.altup.predictions - 1) * hidden
        made = self._rows(others)
        for columns in (hidden, others):
            self._free(self._rows(columns, FLOAT))
        wide, narrow = self._rows(others, FLOAT), self._rows(others)
        self._free(made, wide)
        whole = self._predictions()
        self._free(*self._stream, narrow)
        self._stream[:] = [whole]

    def _altup_layer(self, number: int) -> None:
        """All predictions are mixed; one is computed, and all are corrected."""
        self._free(self._hidden(), self._hidden())
        mixed = self._predictions()
        self._free(*self._stream)
        self._stream[:] = [mixed]
        x, normed = self._hidden(), self._hidden()
        y, before = self._attention(number, normed), x
        x = self._hidden()
        self._free(before)
        narrow, low = self._rows(self.shapes.altup.rank), self._hidden()
        self._free(narrow)
        beside = self._hidden()
        self._free(low, y)
        self._free(beside, normed)
        normed = self._hidden()
        y = self._mlp(number)
        self._free(normed)
        computed = self._hidden()
        self._free(x, y)
        self._free(self._hidden(), self._predictions(), computed)
        self._free(*(self._hidden() for _ in range(3)))

    def _predictions(self) -> Block:
        return self._rows(self.shapes.altup.predictions * self.shapes.hidden_size)

    def _state_layer(self, number: int) -> None:
        if self.shapes.mamba is not None:
            self._stream.append(self._mamba())
        else:
            self._stream.append(self._delta() if self.shapes.delta is not None else self._convolution())
        if not self.shapes.single:
            self._add_mlp(number)

    def _both_layer(self, number: int) -> None:
        """Attention beside a state, to whose part it is added."""
        normed = self._normed()
        mixed = self._mamba(normed)
        self._free(self._attention(number, normed), normed)
        self._stream.append(mixed)
        self._add_mlp(number)

    def _add_mlp(self, number: int) -> None:
        normed = self._normed()
        self._stream.append(self._mlp(number))
        self._free(normed)

    def _normed(self) -> Block:
        """The residual stream normalised, and in its place the sum of what it is."""
        if len(self._stream) == 1:
            return self._hidden()
        total, normed = self._hidden(), self._hidden()
        self._free(*self._stream)
        self._stream[:] = [total]
        return normed

    def _attention(self, number: int, given: Block | None = None) -> Block:
        """Of the stream normalised, which may be there."""
        shapes, layer = self.shapes, self.shapes.layers[number]
        heads = self.share.of(shapes.of_layer(number).num_heads)
        head_dim = layer.head_dim or shapes.head_dim
        q, kv = heads * head_dim, self.share.kv_heads(layer.kv_heads) * head_dim
        normed = [self._normed()] if given is None else []
        qkv = self._product(shapes.hidden_size, q + 2 * kv)
        floats = []
        if shapes.qk_norm == "with_values":
            floats.append(self._rows(q + 2 * kv, FLOAT))
            self._free(qkv)
            wide, qkv = self._rows(kv, FLOAT), self._rows(kv)
            self._free(wide)
        norms_apart = shapes.qk_norm in ("whole", "turned_heads", "with_values")
        if shapes.bidirectional or norms_apart:  # else one launch does all of it
            apart = [self._rows(q + kv, FLOAT) for _ in range(3)]
            if floats:
                self._free(apart.pop(), apart.pop())
            floats += apart
            turned = self._rows(q + kv)
            self._free(*floats)
        else:
            turned = self._rows(q)
        attended = self._rows(q)
        self._free(self._parts(heads, head_dim), turned)
        if shapes.attention_gate != "none":
            width = heads if shapes.attention_gate == "heads" else q
            gates = self._product(shapes.hidden_size, width)
            opened = self._rows(width)
            self._free(gates)
            passed = self._rows(q)
            self._free(opened, attended)
            attended = passed
        out = self._product(q, shapes.hidden_size)
        self._free(*normed, qkv, attended)
        return out

    def _latent(self) -> Block:
        latent, heads = self.shapes.latent, self.share.of(self.shapes.num_heads)
        key = latent.rank + latent.rope_dim
        normed, compressed = self._normed(), self._rows(key + (latent.query_rank or 0))
        source = self._rows(latent.query_rank or 0)
        q = self._rows(heads * (latent.plain_dim + latent.rope_dim))
        through = self._rows(heads * latent.rank)
        queries, keys = self._rows(heads * key), self._rows(key)
        self._free(through)
        attended = self._rows(heads * latent.rank)
        self._free(self._parts(heads, latent.rank))
        values = self._rows(heads * latent.value_dim)
        out = self._hidden()
        self._free(normed, compressed, source, q, queries, keys, attended, values)
        return out

    def _parts(self, heads: int, value_dim: int) -> Block:
        """What attention of single tokens gives for each part of their keys."""
        seen = min(self.context_length, LONG_CONTEXT)
        splits = -(-seen // (-(-seen // (MOST_SPLITS * SPLIT)) * SPLIT))
        if splits == 1 or self.sequences == 1:
            return self._new(1)
        return self._new((self.sequences - 1) * heads * splits * value_dim * FLOAT)

    def _delta(self) -> Block:
        delta = self.shapes.delta.on_rank(self.share)
        values = delta.value_heads * delta.value_dim
        normed = self._normed()
        hidden = self.shapes.hidden_size
        projected = self._product(hidden, delta.channels + values + 2 * delta.value_heads)
        gates = [self._rows(delta.value_heads, FLOAT) for _ in range(2)]
        mixed, convolved = self._rows(delta.channels), self._rows(delta.channels, FLOAT)
        self._free(mixed)
        out = self._rows(values, FLOAT)
        if chunks := sum(-(-prompt // CHUNK) for prompt in self._prompts if prompt > 1):
            square = min(chunks, CHUNKS) * delta.value_heads * CHUNK * CHUNK * FLOAT
            self._free(self._new(square), self._new(square))
        self._free(convolved)
        narrow = self._rows(values)
        self._free(out)
        out = self._product(values, hidden)
        self._free(normed, projected, narrow, *gates)
        return out

    def _mamba(self, given: Block | None = None) -> Block:
        """As `_attention`."""
        mamba = self.shapes.mamba.on_rank(self.share)
        normed = [self._normed()] if given is None else []
        hidden, inner, channels = self.shapes.hidden_size, mamba.inner, mamba.channels
        projected = self._product(hidden, mamba.projected)
        biased = [self._rows(mamba.heads, FLOAT) for _ in range(2)]
        self._free(biased[0])
        steps = self._rows(mamba.heads, FLOAT)
        self._free(biased[1])
        steps = [steps, self._rows(mamba.heads, FLOAT)]
        mixed, convolved = self._rows(channels), self._rows(channels, FLOAT)
        self._free(mixed)
        out = self._rows(inner, FLOAT)
        if longest := max(self._prompts, default=0):
            chunk, state = min(longest, SPACE_CHUNK), self._new(inner * mamba.state_dim * FLOAT)
            between = self._new(mamba.heads * chunk * chunk * FLOAT)
            self._free(self._new(mamba.groups * chunk * chunk * FLOAT))
            within = [self._new(chunk * inner * FLOAT) for _ in range(3)]  # written, and read, in two parts
            self._free(state, between, *within)
        self._free(convolved)
        wide = [self._rows(inner, FLOAT) for _ in range(2)]
        self._free(*wide)
        narrow = self._rows(inner)
        found = self._product(inner, hidden)
        self._free(*normed, projected, narrow, out, *steps)
        return found

    def _convolution(self) -> Block:
        convolution = self.shapes.convolution.on_rank(self.share)
        normed, hidden, channels = self._normed(), self.shapes.hidden_size, convolution.channels
        projected = self._product(hidden, 3 * channels)
        mixed, convolved = self._rows(channels), self._rows(channels, FLOAT)
        self._free(mixed)
        narrow = self._rows(channels)
        out = self._product(channels, hidden)
        self._free(normed, projected, convolved, narrow)
        return out

    def _mlp(self, number: int) -> Block:
        shapes, experts = self.shapes, self.shapes.experts
        routed = experts is not None and number in experts.layers
        if not routed:
            return self._gated(self.share.of(shapes.inner(number)), closes=shapes.closes(number))
        beside = [self._gated(self.share.of(experts.shared_size))] if experts.shared_size else []
        self._free(self._scores(experts))
        found = self._of_experts(experts)
        self._free(*beside)
        if experts.beside_mlp:
            self._free(self._gated(self.share.of(shapes.intermediate_size)))
        return found

    def _gated(self, inner: int, closes: bool = False) -> Block:
        hidden, has_gates = self.shapes.hidden_size, self.shapes.gates
        both = self._product(hidden, (1 + has_gates) * inner)
        if closes and self.itemsize != FLOAT:
            self._free(self._rows(inner, FLOAT))
        wide = [self._rows(inner, FLOAT) for _ in range(WIDE_OF_XIELU * (self.shapes.activation == "xielu"))]
        gated = self._rows(inner)
        self._free(both, *wide)
        out = self._product(inner, hidden)
        self._free(gated)
        return out

    def _product(self, columns: int, rows: int, tokens: int | None = None) -> Block:
        """Of a weight `[rows, columns]`, with all tokens or so many (`workers/kernels/products.py`)."""
        tokens = tokens or self.tokens
        if not self.in_blocks:
            return self._new(tokens * rows * self.itemsize)
        size = columns * self.itemsize
        if tokens <= SOME and rows * size > MOST_CACHE:
            return self._new(tokens * rows * self.itemsize)
        at_once = max(TOGETHER, SCRATCH_BYTES // size // TOGETHER * TOGETHER)
        if rows <= at_once:
            plain = self._new(rows * size)
            out = self._new(tokens * rows * self.itemsize)
            self._free(plain)
            return out
        out, before = self._new(tokens * rows * self.itemsize), None
        for start in range(0, rows, at_once):
            count = min(at_once, rows - start)
            plain = self._new(count * size)
            if before is not None:
                self._free(before)
            self._free(self._new(tokens * count * self.itemsize))
            before = plain
        self._free(before)
        return out

    def _scores(self, experts: Experts) -> Block:
        """What a router makes of what it sees, which is float32."""
        wide, logits = self._rows(self.shapes.hidden_size, FLOAT), self._rows(experts.count, FLOAT)
        self._free(wide)
        scores = self._rows(experts.count, FLOAT)
        self._free(logits)
        return scores

    def _of_experts(self, experts: Experts) -> Block:
        hidden, size = self.shapes.hidden_size, self.itemsize
        whole = experts.whole_in(self.share.parts)
        inner = experts.intermediate_size if whole else self.share.of(experts.intermediate_size)
        found, at_once = [], max(1, PAIRS // experts.chosen)
        for start in range(0, self.tokens, at_once):
            tokens = min(at_once, self.tokens - start)
            pairs = tokens * experts.chosen
            projected = (1 + self.shapes.gates) * inner
            both, gated = (self._new(pairs * each * size) for each in (projected, inner))
            self._free(both)
            y = self._new(pairs * hidden * size)
            found.append(self._new(tokens * hidden * size))
            self._free(gated, y)
        if len(found) == 1:
            return found[0]
        whole = self._hidden()
        self._free(*found)
        return whole

    def _inputs(self) -> list[Block]:
        """Of all layers, which are there while these run."""
        if (inputs := self.shapes.per_layer) is None:
            return []
        columns = self.shapes.num_layers * inputs.size
        parts = []
        for _ in range(2):  # projected, and of the table
            plain = self._rows(columns)
            parts.append(self._rows(columns))
            self._free(plain)
        normed = self._rows(columns)
        total = self._rows(columns)
        self._free(normed)
        found = self._rows(columns)
        self._free(*parts, total)
        return [found]

    # --- tokens -----------------------------------------------------------------------------------------

    def _logits(self, rows: int) -> Block:
        vocabulary = self.shapes.vocab_size
        narrow = self._product(self.shapes.hidden_size, self.share.of(vocabulary), rows)
        if self.ranks > 1:
            narrow = self._gathered(narrow, rows)
        logits = self._new(rows * vocabulary * FLOAT)
        self._free(narrow)
        return logits

    def _gathered(self, own: Block, rows: int) -> Block:
        """The logits of all ranks, which come as wide as those of the rank that has most."""
        mine, widest = (share.of(self.shapes.vocab_size) for share in (self.share, self.widest))
        if mine < widest:
            padded = self._new(rows * widest * self.itemsize)
            self._free(own)
            own = padded
        parts = [self._new(rows * widest * self.itemsize) for _ in range(self.ranks)]
        whole = self._new(rows * self.shapes.vocab_size * self.itemsize)
        self._free(own, *parts)
        return whole

    def _measured(self, rows: int) -> None:
        """Log-probabilities."""
        vocabulary = rows * self.shapes.vocab_size
        relative = self._new(vocabulary * FLOAT)
        self._free(self._new(vocabulary * padded_bytes(self.shapes.vocab_size)))
        self._free(self._new(vocabulary))  # who is more probable
        self._free(relative)

    def _tell(self) -> None:
        if self._prompts and (rows := self._prompts[0] - 1):  # what follows the last one is not known
            logits = self._logits(rows)
            self._measured(rows)
            self._free(logits)

    def _draw(self) -> None:
        vocabulary = self.shapes.vocab_size
        rows = self.sequences - 1 + len(self._prompts)
        logits = self._logits(rows)
        self._penalties(self.sequences)
        plain = self._new(rows * vocabulary * FLOAT)
        self._free(self._new(rows * vocabulary * padded_bytes(vocabulary)))
        at_once = max(1, DRAWN // vocabulary)
        for start in range(0, rows, at_once):
            self._penalised(min(at_once, rows - start) * vocabulary)
        self._sorted(min(at_once, self.sequences - 1) * vocabulary)
        for start in range(0, rows, at_once):
            self._measured(min(at_once, rows - start))
        self._free(plain, logits)

    def _penalties(self, sequences: int) -> None:
        """How often each token came in each sequence, and whether at all; the room is doubled as needed."""
        rooms = [4]
        while rooms[-1] < sequences:
            rooms.append(2 * rooms[-1])
        before: list[Block] = []
        for room in rooms:
            made = []
            for size in (2, 1):
                more = self._new(room // 2 * self.shapes.vocab_size * size)
                made.append(self._new(room * self.shapes.vocab_size * size))
                self._free(more)
            self._free(*before)
            before = made

    def _penalised(self, elements: int) -> None:
        taken, positive = self._new(elements * FLOAT), self._new(elements)
        divided, multiplied, changed = (self._new(elements * FLOAT) for _ in range(3))
        self._free(positive, divided, multiplied)
        seen, chosen = self._new(elements), self._new(elements * FLOAT)
        self._free(changed, seen)
        narrow, counts = self._new(elements * 2), self._new(elements * FLOAT)
        self._free(narrow)
        there, product = self._new(elements), self._new(elements * FLOAT)
        self._free(taken, chosen, counts, there, product)

    def _sorted(self, elements: int) -> None:
        """A draw from all of the vocabulary, in order."""
        values, places = self._new(elements * FLOAT), self._new(elements * LONG)
        self._free(self._new(elements * SORT_BYTES))
        lower, cooler = self._new(elements * FLOAT), self._new(elements * LONG)
        self._free(lower)
        weights = self._new(elements * LONG)
        self._free(cooler)
        sums, these, those = map(self._new, (elements * LONG, elements, elements))
        self._free(values, places, weights, sums, these, those)

    # --- sizes ------------------------------------------------------------------------------------------

    def _new(self, size: int) -> Block:
        return self.memory.allocate(size)

    def _free(self, *blocks: Block) -> None:
        self.memory.release(*blocks)

    def _rows(self, columns: int, size: int | None = None) -> Block:
        """Of all tokens, so many elements each; of the activations' type, if no size is given."""
        return self._new(self.tokens * columns * (size or self.itemsize))

    def _hidden(self) -> Block:
        return self._rows(self.shapes.hidden_size)
