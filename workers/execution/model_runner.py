"""The engine with a model in it: loads one rank, makes a pool of the rest of its memory, executes plans."""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from ipc.errors import Code, CortexError
from ipc.worker_messages import (
    FREE_ROWS,
    GRAPH_BYTES,
    KERNEL_BYTES,
    AdapterReport,
    CacheGroup,
    DropAdapter,
    LoadAdapter,
    MemoryUse,
    PoolReport,
    ResizePool,
    WorkerSpec,
)
from workers.attention.backend import AttentionBackend
from workers.attention.registry import attention_over, states_over
from workers.attention.states import Mixing, StateBackend
from workers.cache.paged import KVCache
from workers.cache.state import HostStates, StateCache
from workers.checkpoints import caches
from workers.checkpoints.adapter import AdapterCard
from workers.checkpoints.card import ModelCard
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.vision import REMEMBERED_BYTES
from workers.execution.adapters import Adapters
from workers.execution.device import is_out_of_memory
from workers.execution.findings import find
from workers.execution.graphs import GraphDevice, Graphs, Kind, graph_device
from workers.execution.head_drafts import INPUTS, HeadDrafts
from workers.execution.input_buffers import InputBuffers, decode_sizes
from workers.execution.loading import filling, join, make_ready, read_weights, within_memory
from workers.execution.memory import (
    check_pages,
    groups_of_few,
    held,
    largest_step,
    pool_pages,
    taken,
    total_memory,
    trim,
)
from workers.execution.outcome import Outcome
from workers.execution.overlap import LatestTokens
from workers.execution.threads import Threads
from workers.models.decoder import Seen
from workers.models.mtp import MtpHead
from workers.models.registry import MODELS
from workers.models.stages import Stages
from workers.parallel import RankGroup
from workers.sampling.draws import choose
from workers.sampling.grammar import Grammars
from workers.sampling.inputs import Wishes
from workers.sampling.sampled import Launched
from workers.sampling.sampler import Sampler
from workers.step.batch import Segment, Slot, Step, make_step
from workers.step.engine import Loaded, OutOfDeviceMemory, StepResult
from workers.step.gallery import Gallery
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StateMove, StepPlan, drafts_of, verified
from workers.vision.sight import Sight
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, bytes_filled

GRID = ("rows", "columns")  # of the tokens of images, among the inputs of a step
NO_GRID = (array("q"), array("q"))
CHECKED_STEPS = 16  # between two looks at how much memory is held

logger = logging.getLogger("workers.execution.model_runner")


class Decoded(NamedTuple):
    """What a decode step computed, on rank 0."""

    logits: Tensor | None  # [rows, vocabulary] float32, where tokens are chosen outside of the step
    tokens: Tensor | None  # [rows] int64, where they are chosen in it
    hidden: Tensor | None  # [rows, hidden], before the last norm, where a head reads them
    collectives: int  # that it took part in


class ModelRunner:
    """One rank of a transformer. Implements `workers.step.engine.Engine`."""

    def __init__(self, spec: WorkerSpec, card: ModelCard, adapters: Sequence[AdapterCard] = ()) -> None:
        self.spec, self.card = spec, card.kept_in(spec.quantization)
        self.adapters = Adapters(adapters)
        self.group = RankGroup()
        self.sight: Sight | None = None  # where the model sees
        self.mtp: MtpHead | None = None  # where it is to guess
        self.slots: dict[int, Slot] = {}
        self.grammars: Grammars | None = None  # made when the first one is asked for; on rank 0 only
        self.threads: Threads | None = None  # None: their number stays
        self.blocks: list[int] | None = None  # of the model, that run; None: all
        # on the others: who got tokens that no plan has told yet, and the drafts that were fed
        self.untold: deque[tuple[Slot, Sequence[int]]] = deque()
        self.in_flight = int(spec.device != "cpu")  # steps, when the next is sent: a CPU is busy with one
        self.host_states: HostStates | None = None  # for those that leave the device, if there is room
        self.graphs: Graphs[Decoded] | None = None  # None: steps are not padded, and none is recorded
        self.decoded: Tensor | None = None  # [rows, vocabulary], the logits that recorded steps leave
        # whose drafts the last step checked, and how many tokens had been computed of it then
        self.checked: list[tuple[Slot, int]] = []
        self.moves: deque[StateMove] = deque()  # that were planned, and not made yet

    def load(self, progress: Callable[[float, str], None]) -> Loaded:
        """Read this rank's weights, measure what a step takes, and make KV pages of the rest.

        Raises:
            CortexError: the checkpoint cannot be loaded, or does not divide over the ranks;
                INSUFFICIENT_MEMORY, it does not fit or leaves no room.
        """
        return within_memory(partial(self._load, progress), self.spec, self.card)

    def _load(self, progress: Callable[[float, str], None]) -> Loaded:
        spec = self.spec
        dtype = getattr(torch, spec.dtype)
        device = torch.device(spec.device)
        config = self.card.config.at_context(spec.context_length)
        self.group = join(spec, self.card)
        formats = self.card.formats(self.group.split, spec.quantization)
        self.model = MODELS[self.card.family](config, self.group, dtype, formats)
        if config.mtp:
            self.mtp = MtpHead(self.model, config, self.group, Empty(dtype, self.group.device, formats))
        if self.card.vision is not None:
            self.sight = Sight(self.card.vision, dtype, self.group, Gallery(), REMEMBERED_BYTES)
        self.stages = Stages(self.card.stages, config.norm_eps, Empty(dtype, device))
        weights = bytes_filled(self._parts())
        self.woken = read_weights(spec, self.card, self.group, formats, self._parts, progress)
        for block in (*self.model.blocks, *([] if self.mtp is None else [self.mtp.block])):
            block.put_in_order()
        weights += filling(spec, self.card, self.group)
        linears = [linear for block in self.model.blocks for linear in block.linears]
        self.adapters.stand_beside(linears, Empty(dtype, device), spec.exact)
        threads = make_ready(spec, self.model, weights, progress)
        if device.type == "cpu" and not spec.exact:  # how many threads there are can change a bit
            self.threads = Threads(threads)
        self.sampler = Sampler(config.vocab_size, device)
        progress(1.0, "measuring a step")
        return self._make_pool(config, dtype, weights + self.model.head.copied)

    def _parts(self) -> Iterator[Shard]:
        """All that this rank reads from the checkpoint."""
        yield from self.model.parts()
        yield from self.stages.parts()
        if self.mtp is not None:
            yield from self.mtp.parts()
        if self.sight is not None and self.sight.tower is not None:
            yield from self.sight.tower.weights.parts()

    def _make_pool(self, config: ModelConfig, dtype: torch.dtype, weights: int) -> Loaded:
        """A pool as large as memory allows: first one page of few layers, to see what all else takes.

        Args:
            weights: bytes.
        """
        spec = self.spec
        groups = self.card.cache_groups(self.group.mine, spec.dtype, spec.kv_cache_dtype)
        shapes = dict(enumerate(layer.shape_on_rank(self.group.mine) for layer in config.layers))
        kind = {"dtype": dtype, "device": self.group.device, "kv_cache_dtype": spec.kv_cache_dtype}
        pool = partial(KVCache, shapes=shapes, **kind)
        used = self._probe(config, pool, weights)
        states = caches.num_states(groups, spec.max_sequences) if spec.states is None else spec.states
        spare = caches.SPARE_STATES[self.group.device.type]
        used = msgspec.structs.replace(used, kv_pool=(states + spare) * caches.state_bytes(groups))
        page_bytes = caches.page_bytes(groups)
        recorder = graph_device(self.group.device)
        pages = self.group.least(pool_pages(spec, page_bytes, used))
        check_pages(spec, pages, page_bytes, used, groups)
        paged = [group for group in groups if group.kind != "state"]
        padded = recorder is not None
        most = None
        if spec.resizable and page_bytes:
            most = max(pages, min(spec.kv_pages, total_memory(spec.device) // page_bytes))
            trim(spec.device)  # what an allocator keeps would not become the pool's by itself
        self._attend_over(groups, pool(paged, pages=pages, padded=padded, most=most), states, padded)
        if recorder is not None and self._capturable:
            self._prepare_graphs(recorder, groups, states)
        if states and spec.host_states:
            self.host_states = HostStates(self.state_cache, spec.host_states)
        memory = msgspec.structs.replace(used, kv_pool=self.cache.nbytes + used.kv_pool)
        self.most_bytes = memory.total
        gallery = None if self.sight is None else self.sight.gallery
        return Loaded(
            pages,
            memory,
            groups,
            states,
            woken=self.woken,
            gallery=gallery,
            together=0 if self.sight is None else self.sight.vision.together,
            in_flight=self.in_flight,
            host_states=spec.host_states if self.host_states is not None else 0,
            resizable=bool(self.group.least(int(self.cache.resizable))),
        )

    def _probe(self, config: ModelConfig, pool: Callable[..., KVCache], weights: int) -> MemoryUse:
        """What all but the pool takes, measured with one page and the layers that are unlike each other.

        Args:
            pool: makes one.
            weights: bytes.
        """
        self.blocks = config.unlike_layers()
        few = groups_of_few(config, self.blocks)
        self._attend_over(few, pool(few[:1], pages=1), 1)
        with self.adapters.largest() as beside:
            used = self._measure(weights + beside)
        self.blocks = None
        return msgspec.structs.replace(used, weights=weights)

    def _prepare_graphs(self, recorder: GraphDevice, groups: Sequence[CacheGroup], states: int) -> None:
        """Make what steps of single tokens are recorded with."""
        self.graphs = Graphs(recorder, self._most_rows)
        sizes = decode_sizes(self.inputs.sizes, self.spec.max_step_tokens, self._most_rows)
        self.decode_inputs = InputBuffers(sizes, self.group.device)
        page = self.cache.padding
        self.padding = Slot.padding([states if each.kind == "state" else page for each in groups])
        if self.group.rank == 0:
            self.decoded = torch.empty(self._most_rows, self.card.config.vocab_size, device=self.group.device)

    def _attend_over(
        self, groups: Sequence[CacheGroup], cache: KVCache, states: int, padded: bool = False
    ) -> None:
        """Serve with these pages and so many states from now on.

        Args:
            groups: of the tables of plans; one with states comes behind those of `cache`.
            padded: there is one state more, for steps that are padded.
        """
        spec, config = self.spec, self.card.config
        self.groups, self.cache = list(groups), cache
        latent_rank = None if config.latent is None else config.latent.rank
        limits = pages_for(spec.context_length), spec.exact
        bent = config.attention_scale, config.attention_cap, latent_rank
        self.attention: AttentionBackend = attention_over(
            cache, spec.max_step_tokens, spec.max_sequences, *limits, *bent
        )
        self.head_drafts: HeadDrafts | None = None
        if self.mtp is not None:
            few_rows = attention_over(cache, FREE_ROWS, FREE_ROWS, *limits, *bent)
            self.head_drafts = HeadDrafts(self.mtp, self.group, few_rows)
        grid = () if self.sight is None else GRID
        drafts = () if self.head_drafts is None else INPUTS
        named = ("token_ids", "positions", "sampled_rows", *drafts, *grid)
        sizes = dict.fromkeys(named, spec.max_step_tokens)
        self.states: StateBackend | None = None
        if config.state is not None:
            state, layers = config.state.on_rank(self.group.mine), groups[-1].layers
            self.state_cache = StateCache(layers, state, states=states + padded, device=self.group.device)
            group = len(groups) - 1
            self.states = states_over(self.state_cache, group, spec.max_step_tokens, spec.exact)
            sizes |= self.states.sizes
        self.latest: LatestTokens | None = None
        if self.in_flight or padded:
            self.latest = LatestTokens(spec.max_step_tokens, self.group)
            sizes["sampled_slots"] = spec.max_step_tokens
        self.inputs = InputBuffers(sizes | self.attention.sizes, self.group.device)

    @property
    def _capturable(self) -> bool:
        return self.attention.capturable and (self.states is None or self.states.capturable)

    @property
    def _most_rows(self) -> int:
        """Of a decode step."""
        return min(self.spec.max_sequences, self.spec.max_step_tokens)

    def _measure(self, weights: int) -> MemoryUse:
        """What this rank holds beside `weights`, and what the largest step and recorded ones take.

        Raises:
            CortexError: INSUFFICIENT_MEMORY, not even for that step.
        """
        device, groups = self.spec.device, len(self.groups)
        plan = largest_step(self.spec, self.sampler.block_rows, bool(self.adapters), groups)

        def step() -> None:
            if device == "cpu" and self.group.rank == 0:  # later steps have it from their beginning
                self.sampler.expect(self.spec.max_sequences)
            self.execute(plan)

        trim(device)
        before = held(device)
        try:
            took = taken(device, step)
            if device == "cpu":  # of what was made the first time nobody knows how much was there at the most
                self.empty()
                again = taken(device, lambda: self.execute(plan))
        except OutOfDeviceMemory as error:
            raise CortexError(
                Code.INSUFFICIENT_MEMORY,
                f"a step of {self.spec.max_step_tokens} tokens does not fit beside the weights: {error}. "
                "A smaller max_step_tokens or max_sequences needs less",
            ) from error
        self.empty()
        most = took.most
        if device == "cpu":  # the kernels that it made are some of those that are booked
            most = again.most + max(self.sampler.nbytes, took.left - KERNEL_BYTES)
        if self.group.split.even:  # the ranks do the same: what one of them took, each may come to take
            most = -self.group.least(-most)
        if self.spec.speculation is not None:  # rows of guesses, which that step has none of
            most += (FREE_ROWS - 1) * self.model.vocab_size * (8 + getattr(torch, self.spec.dtype).itemsize)
            most += FREE_ROWS * self.card.config.guess_bytes(self.group.mine)
        kept = KERNEL_BYTES if device == "cpu" else GRAPH_BYTES + 4 * self._most_rows * self.model.vocab_size
        if self.sight is not None:  # no image was looked at
            kind, itemsize = self.group.device.type, self.sight.dtype.itemsize
            look = self.sight.vision.look_bytes(itemsize, self.spec.context_length, kind)
            most, kept = max(most, look.piece) + look.kept, kept + (REMEMBERED_BYTES if kind == "cpu" else 0)
        return MemoryUse(weights=weights, activations=most + kept, runtime=before - weights)

    def empty(self) -> None:
        """Let all sequences go."""
        for number in list(self.slots):
            self._release(number)
        self.untold.clear()
        self.checked.clear()
        self.moves.clear()

    def prove(self) -> int:
        """Sum a one over the ranks."""
        return self.group.prove()

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        return self.send(plan).result()

    @torch.inference_mode()
    def send(self, plan: StepPlan) -> Outcome:
        """Begin one step."""
        self.group.begin_step(plan.step)
        if self.threads is not None:
            self.threads.follow()
        if self.group.rank > 0:
            self._hear(plan.tokens, plan.drafts)
        for number in plan.released:
            self._release(number)
        for new in plan.added:
            self._add(new)
        for entry in plan.scheduled:
            for table, pages in zip(self.slots[entry.slot].tables, entry.new_pages, strict=False):
                table.extend(pages)
        self.moves.extend(plan.moves)
        if plan.step % CHECKED_STEPS == CHECKED_STEPS - 1 and self._held() > self.most_bytes:
            trim(self.spec.device)  # free memory in pieces too small for anything
            self.most_bytes = max(self.most_bytes, self._held())  # the rest is in use
        try:
            self._ready_states()
            seen = self.sight is not None and self.sight.look_on(plan.look)
            outcome = self._step(plan.scheduled)
            if self.sight is not None:
                outcome.looked, outcome.seen = self.sight.end_step(plan.look), seen
            return outcome
        except (RuntimeError, MemoryError) as error:
            if self.group.size > 1 or not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # here, because the error held what the step had: only now there is something to give back
        for entry in plan.scheduled:  # tokens may have been chosen already, and be counted
            self._forget_settings(entry.slot)
        if self.sight is not None:
            self.sight.end_step(None)
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfDeviceMemory(reason)

    def _hear(self, tokens: list[int], drafts: list[int]) -> None:
        """Take in what rank 0 sampled in the oldest steps of which nothing was told yet."""
        coming, left, made = iter(tokens), len(tokens), iter(drafts)
        while left:
            slot, planned = self.untold.popleft()
            known = verified(coming, drafts_of(planned, made))
            left -= len(known)
            if not slot.new.pooling:
                slot.know(known)

    def _ready_states(self) -> None:
        """Let drafts that were right into the states of their sequences, and move those that leave the device
        or come back: before anybody begins with these. Where memory runs out the next step does the rest."""
        right = [slot.num_computed - before for slot, before in self.checked]
        if any(right):
            self.states.adopt(right)
        self.checked = []
        while self.moves:
            self.host_states.move(self.moves[0])
            self.moves.popleft()

    def _held(self) -> int:
        """Bytes, without adapters, which come and go."""
        return held(self.spec.device) + self.cache.unseen - self.adapters.nbytes

    def resize(self, order: ResizePool) -> PoolReport:
        """Have memory for so many pages; where that is not to be had, the pool is as it was."""
        before, code, message = self.cache.nbytes, "", ""
        try:
            self.cache.keep(order.kept)
        except (MemoryError, OSError) as error:
            code, message = Code.INSUFFICIENT_MEMORY, str(error)
        self.most_bytes += self.cache.nbytes - before
        return PoolReport(self.cache.pages, code, message)

    def adapt(self, order: LoadAdapter | DropAdapter, tell: Callable[[AdapterReport], None]) -> None:
        """Begin to read an adapter, or let it go."""
        self.adapters.follow(order, tell)

    def collectives(self) -> tuple[int, float]:
        """How many there were, and the seconds in them."""
        return self.group.collectives, self.group.collective_seconds

    def close(self) -> None:
        """Leave the group, and let go of all memory."""
        if self.graphs is not None:
            self.graphs.release()  # before the group ends, whose collectives are in them
        self.group.leave()
        self.adapters.close()
        if self.grammars is not None:
            self.grammars.close()
        if self.host_states is not None:
            self.host_states.close()
        self.slots.clear()
        if hasattr(self, "cache"):
            self.cache.close()
        self.graphs = self.decoded = self.host_states = self.mtp = None
        for name in (
            "model",
            "sight",
            "cache",
            "state_cache",
            "attention",
            "states",
            "inputs",
            "decode_inputs",
            "latest",
            "sampler",
            "head_drafts",
        ):
            self.__dict__.pop(name, None)

    def _add(self, new: NewSequence) -> None:
        """A sequence enters, without device memory. Its grammar is compiled while its prompt is computed."""
        self.adapters.check(new.adapter)
        slot = self.slots[new.slot] = Slot.of(new, len(self.groups))
        if new.constraint is not None and self.group.rank == 0:
            if self.grammars is None:
                self.grammars = Grammars(self.card.tokenizer_file, self.model.vocab_size)
            self.grammars.add(new.slot, new.constraint, slot.output, new.params.stop_ids)

    def _release(self, number: int) -> None:
        self._forget_settings(number)
        del self.slots[number]
        if self.grammars is not None:
            self.grammars.remove(number)

    def _step(self, scheduled: list[Scheduled]) -> Outcome:
        """What the plan's tokens lead to. Until all of it was sent, no slot has more of its tokens computed,
        and the sampler knows at most that a sequence is there.
        """
        step = make_step(scheduled, self.slots)
        if self.adapters:
            self.adapters.step.begin([(s.slot.new.adapter, s.rows) for s in step.segments], self.group.device)
        masks = self.grammars.begin(step.sampled) if self.grammars is not None else None
        segments = step.segments
        findings, launched, made = None, None, None
        if self.graphs is not None and step.is_decode:
            inputs, logits, launched, follow = self._decode(step, masks is None)
        else:
            beside = {"sampled_slots": array("q", step.sampled)}
            inputs = self._fill(step, segments, self.inputs, beside)
            if self.head_drafts is not None and step.drafts:
                made = self.head_drafts.draft(step)
            behind = None
            if self.head_drafts is not None and step.shows:
                behind = self.sight.look(segments, ahead=1)
            wanted = self._wanted(step, inputs)
            hidden = self._hidden(segments, inputs, step.shows, made, wanted)
            follow = self._follow(step, segments, inputs, hidden, behind)
            findings = find(self.model, self.stages, self.card, segments, hidden)
            sampled = hidden if wanted is not None else hidden[inputs["sampled_rows"]]
            logits = self.model.logits(sampled) if step.sampled else None
        if launched is None:
            if logits is not None:
                self._enter(step.sampled)
                bitmask = masks.result() if masks is not None else None
                launched = self.sampler.launch(logits, step.sampled, bitmask, step.drafts, made, follow)
            elif follow is not None:
                follow(None)
            known = self.latest is not None and not step.drafts  # else the next step waits for these
            if known and step.sampled:
                self.latest.keep(inputs["sampled_slots"], None if launched is None else launched.tokens)
        if findings is not None:
            findings.keep()
        for segment in segments:
            segment.slot.num_computed += len(segment.rows)
        for number, drafts in step.drafts.items():
            self.slots[number].num_computed -= len(drafts)
        if self.states is not None:
            checked = [segment.slot for segment in segments if segment.drafts]
            self.checked = [(slot, slot.num_computed) for slot in checked]
        return self._outcome(step, launched)

    def _outcome(self, step: Step, launched: Launched | None) -> Outcome:
        """What the step comes to later: on rank 0, which has the tokens; the others are told them."""
        for number in dict.fromkeys(step.sampled):
            self.slots[number].num_ahead += 1
        complete = [(number, self.slots[number], step.drafts.get(number, ())) for number in step.complete]
        ahead = self.latest is not None and not any(slot.new.constraint for _, slot, _ in complete)
        if self.group.rank > 0:
            self.untold.extend((slot, drafts) for _, slot, drafts in complete)
            return Outcome([], None, None, ahead)
        return Outcome(complete, launched, self.grammars, ahead and (launched is None or launched.ahead))

    def _fill(
        self, step: Step, segments: list[Segment], buffers: InputBuffers, beside: dict[str, array[int]]
    ) -> dict[str, Tensor]:
        """The inputs of a step, on the device; `beside` what attention does not see."""
        return buffers.fill(
            {"token_ids": step.token_ids, "positions": step.positions, "sampled_rows": step.sampled_rows}
            | beside
            | self.attention.arrays(segments)
            | (self.states.arrays(segments) if self.states is not None else {})
            | (dict(zip(GRID, step.grid or NO_GRID, strict=True)) if self.sight is not None else {})
            | (self.head_drafts.arrays(segments) if self.head_drafts is not None else {})
        )

    def _hidden(
        self,
        segments: list[Segment],
        inputs: dict[str, Tensor],
        shows: bool = False,
        made: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden]
        """What the model makes of the tokens of a step, some of which may be of images, and some drafts that
        were `made` just now."""
        attend = partial(self.attention.run, self.attention.prepare(segments, inputs))
        if self.states is not None:
            attend = Mixing(attend, partial(self.states.run, self.states.prepare(segments, inputs)))
        token_ids, positions = inputs["token_ids"], self._positions(inputs, shows)
        if self.latest is not None:
            token_ids = self.latest.fill_in(token_ids)
        if made is not None:
            token_ids = token_ids.index_copy(0, inputs["drafted_rows"], made)
        if not shows:
            return self.model(token_ids, positions, attend, self.blocks, wanted=wanted)
        return self.model(token_ids, positions, attend, self.blocks, self.sight.look(segments))

    def _wanted(self, step: Step, inputs: dict[str, Tensor]) -> Tensor | None:  # [wanted] int64
        """The rows that tokens are sampled of, or one where none is; None: others are read as well, or there
        are no others."""
        slots = [segment.slot for segment in step.segments]
        if self.head_drafts is not None or any(slot.new.pooling or slot.tells for slot in slots):
            return None
        # which blocks run is said where memory is measured, and the last one is to take what others take
        if self.blocks is not None or step.shows or self.adapters.step.rows:
            return None
        rows = inputs["sampled_rows"]
        if len(rows) == len(step.token_ids):
            return None
        return rows if len(rows) else rows.new_zeros(1)

    def _positions(self, inputs: dict[str, Tensor], shows: bool) -> Tensor:
        """Of the tokens of a step, as the model wants them."""
        if not shows or not self.card.config.rope_sections:
            return inputs["positions"]
        return torch.stack((inputs["positions"], *(inputs[name] for name in GRID)))

    def _follow(
        self,
        step: Step,
        segments: list[Segment],
        inputs: dict[str, Tensor],
        hidden: Tensor | None,
        seen: Seen | None = None,
    ) -> Callable[[Tensor | None], None] | None:
        """What is to be done with the tokens of a step before they count, if anything is.

        Args:
            seen: what of the tokens behind those of the step is.
        """
        if self.head_drafts is None:
            return None
        attend = partial(self.attention.run, self.attention.prepare(segments, inputs))
        positions = self._positions(inputs, step.shows)
        return partial(self.head_drafts.follow, step, self.slots, inputs, attend, positions, hidden, seen)

    def _decode(
        self, step: Step, free: bool
    ) -> tuple[dict[str, Tensor], Tensor | None, Launched | None, Callable[[Tensor | None], None] | None]:
        """A decode step, which is padded, and replayed where such a one was recorded.

        Args:
            free: no grammar has a say in it.

        Returns:
            Its inputs, and on rank 0 logits (`[sampled, vocabulary]` float32), or tokens, if it has chosen
            them itself: where settings are plain, and this rank is alone, so that nobody has to be told.
            Where it has not, what is to be done with the tokens.
        """
        rows, ways, before = self.graphs.rows(len(step.segments)), None, self.group.collectives
        if self.group.size == 1:
            self._enter(step.sampled)
            ways = self.sampler.ways(step.sampled) if free else None
            ways = ways if self.graphs.takes(Kind(rows, ways)) else None
        segments = step.pad(rows, self.padding)
        beside = {"sampled_slots": array("q", step.sampled), "wishes": array("q")}
        if ways is not None:
            beside["sampled_slots"].extend([self.latest.nobody] * (rows - len(step.sampled)))
            beside["wishes"].frombytes(self.sampler.wishes(step.sampled, rows).tobytes())
        inputs = self._fill(step, segments, self.decode_inputs, beside)

        def launches() -> Decoded:
            before = self.group.collectives
            hidden = self._hidden(segments, inputs)
            logits, tokens = self.model.logits(hidden), None
            if ways is not None:
                wishes = Wishes.of(inputs["wishes"].view(torch.float64))
                tokens = choose(logits, wishes, ways, self.sampler.block_rows)
                self.latest.keep(inputs["sampled_slots"], tokens)
                logits = None
            elif logits is not None:
                logits = self.decoded[:rows].copy_(logits)
            kept = None if self.head_drafts is None else hidden
            return Decoded(logits, tokens, kept, self.group.collectives - before)

        logits, tokens, hidden, collectives = self.graphs.run(Kind(rows, ways), launches)
        self.group.collectives = before + collectives  # a replay does not count them
        follow, count = self._follow(step, segments, inputs, hidden), len(step.segments)
        if logits is not None:
            return inputs, logits[:count], None, follow
        if tokens is not None:
            if follow is not None:
                follow(tokens[:count])
            return inputs, None, self.sampler.chosen(tokens[:count], step.sampled), None
        return inputs, None, None, follow

    def _enter(self, numbers: list[int]) -> None:
        """Tell the sampler of those that get a token for the first time."""
        for number in numbers:
            slot = self.slots[number]
            if not slot.sampling:
                slot.sampling = True
                self.sampler.add(number, slot.new.params, slot.prompt, slot.output)

    def _forget_settings(self, number: int) -> None:
        """Let the sampler know nothing of a sequence, which may be half of what it is told of one."""
        if self.slots[number].sampling:
            self.sampler.remove(number)
            self.slots[number].sampling = False
