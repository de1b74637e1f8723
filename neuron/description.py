"""What is known of a model before it is loaded, from its checkpoint or from the plan of a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ipc.errors import Code, CortexError
from ipc.model_settings import Dtype, Quantization
from ipc.worker_messages import FREE_ROWS, CacheGroup, SimulatedSpec
from neuron.config import ModelSettings
from neuron.memory.cache_plan import CachePlan
from neuron.memory.need import Need, RankNeed
from neuron.memory.step_bytes import UNMEASURED_BYTES, Overhead, kernels_of, packs_head
from neuron.text.frontend import TextFiles
from neuron.text.tokenizer import TextTokenizer
from workers.checkpoints.adapter import AdapterCard, read_adapter
from workers.checkpoints.card import DTYPE_BYTES, ModelCard
from workers.checkpoints.families.llama import EMBEDDING
from workers.checkpoints.generation import GenerationDefaults
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, WHOLE, Share, Split, ways
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.rerankers import Reranker

CPU_STEP_TOKENS = 512  # a step of so many takes about a second on two cores for a model that runs well there
CUDA_STEP_TOKENS = 2048

SIMULATED_TEXT = (
    "This answer comes from the simulated engine, which has a speed and a size but no model behind it. "
    "It says the same words again and again, so that whoever counts tokens has something to count. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """All that the neuron needs of a model, whatever engine runs it."""

    id: str
    engine: Literal["transformer", "simulated"]
    architecture: str
    card: ModelCard | None  # None for a simulation
    dtype: Dtype
    context_length: int
    rank_bytes: tuple[int, ...]  # weights, where ranks share them in the usual way
    filling: tuple[int, ...]  # that a GPU takes for them besides; empty: nothing
    overhead: Overhead | None  # of a rank, besides what it keeps; None for a simulation
    defaults: GenerationDefaults
    eos_ids: list[int]
    completion: bool  # it writes text
    embedding: bool  # it makes vectors of texts
    vector_size: int  # of these
    embedder: Embedder | None  # how, where it is made for nothing else
    reranker: Reranker | None  # how it scores documents, where it is made for that
    whole: bool  # it reads a text at once, and no token follows it
    chat: bool
    tools: bool
    reasoning: bool
    created: int  # Unix time
    notes: list[str]  # what is not as its files or its settings have it
    text: TextFiles  # what its text path is made of, and its eyes
    adapters: tuple[AdapterCard, ...] = ()
    simulated: SimulatedSpec | None = None
    max_output: int | None = None  # tokens of an answer, whatever a request wants
    splits: tuple[Split, ...] = (ALONE,)  # how ranks may share it, first the usual way

    @property
    def vision(self) -> bool:
        """Whether it takes images."""
        return self.text.vision is not None

    def adapter(self, asked: str) -> int:
        """The number of the adapter in what a request calls its model, from 1; 0 where there is none."""
        if asked == self.id:
            return 0
        name = asked.removeprefix(f"{self.id}:")
        return next((number for number, each in enumerate(self.adapters, 1) if each.name == name), 0)

    @property
    def bytes_weights(self) -> int:
        """Of all ranks together."""
        return sum(self.rank_bytes)

    def need(self, settings: ModelSettings, runtime: Mapping[str, int] = UNMEASURED_BYTES) -> Need:
        """What a load asks of the devices where ranks share it in the usual way, and how else they may.

        Args:
            runtime: bytes of a process without a model, by kind of device.
        """
        of_share = cache(partial(self._of_share, settings, runtime))  # dozens of ways have a few shares
        return self._need(settings, of_share, self.splits[0])

    def _need(
        self, settings: ModelSettings, of_share: Callable[[Share, Share], RankNeed], split: Split
    ) -> Need:
        usual, *others = self.splits
        shares = {count: Share(0, count, split.parts) for count in split.counts}
        beside = {count: of_share(share, shares[max(shares)]) for count, share in shares.items()}
        sizes, filling = self.bytes_of_ranks(settings, split), self.filling
        if filling and split != usual:
            filling = self.card.filling_per_rank(split, self.dtype, settings.quantization)
        ranks = [
            replace(beside[count], weights=size, cuda_overhead=beside[count].cuda_overhead + more)
            for size, more, count in zip(sizes, filling or [0] * split.ranks, split.counts, strict=True)
        ]
        return Need(
            model=self.id,
            ranks=tuple(ranks),
            context_length=self.context_length,
            max_sequences=settings.max_sequences,
            kv_memory=settings.kv_memory,
            devices=tuple(settings.devices) if settings.devices is not None else None,
            priority=settings.priority,
            host_state_memory=settings.host_state_memory,
            split=split,
            others=tuple(others) if split == usual else (),
            shared=cache(partial(self._need, settings, of_share)) if split == usual else None,
        )

    def _of_share(
        self, settings: ModelSettings, runtime: Mapping[str, int], share: Share, widest: Share
    ) -> RankNeed:
        """What a rank with that share needs beside weights, where the one that has most has `widest`."""
        overhead = {"cpu": 0, "cuda": 0}
        guessed = FREE_ROWS if settings.speculation is not None else 0
        sampled = settings.max_sequences, max(0, guessed - 1)
        if self.overhead is not None:
            of_rank = replace(self.overhead, share=share, widest=widest)
            of_guesses = guessed * self.overhead.shapes.guess_bytes(share)
            for kind in overhead:
                tokens = self.step_tokens(settings, kind)
                overhead[kind] = runtime[kind] + of_rank.of_step(kind, tokens, *sampled) + of_guesses
        adapters = sorted(self.adapter_bytes(share))[-settings.max_adapters :]
        return RankNeed(
            weights=0,
            caches=CachePlan(self.cache_groups(settings, share), self.step_tokens(settings, "cuda")),
            cpu_overhead=overhead["cpu"],
            cuda_overhead=overhead["cuda"],
            beside=sum(adapters),
        )

    def bytes_of_ranks(self, settings: ModelSettings, split: Split) -> tuple[int, ...]:
        """Of weights, on each rank."""
        if split == self.splits[0]:
            return self.rank_bytes
        return tuple(self.card.bytes_per_rank(split, self.dtype, settings.quantization))

    def cache_groups(self, settings: ModelSettings, share: Share = WHOLE) -> tuple[CacheGroup, ...]:
        """Of layers that keep the same of the tokens before, on a rank with that share."""
        if self.card is None:
            return ()
        return tuple(self.card.cache_groups(share, self.dtype, settings.kv_cache_dtype))

    def adapter_bytes(self, share: Share) -> list[int]:
        """What each adapter takes on a rank with that share."""
        return [each.bytes_on_rank(self.card, share, self.dtype) for each in self.adapters]

    def step_tokens(self, settings: ModelSettings, device: str) -> int:
        """The token budget of one step on such a device; no less than what decode alone takes, of a model
        that reads texts as a whole no less than the longest one, and of one that reads images so room for one
        beside decode."""
        wanted = settings.max_step_tokens or (CPU_STEP_TOKENS if device == "cpu" else CUDA_STEP_TOKENS)
        if self.card is not None and self.card.vision is not None and self.card.vision.together:
            wanted = max(wanted, self.card.vision.together + max(settings.max_sequences, FREE_ROWS))
        return max(wanted, settings.max_sequences, self.context_length if self.whole else 0)


def describe(settings: ModelSettings, folder: Path, card: ModelCard | None = None) -> ModelDescription:
    """What `settings` describe. Reads headers and small files only.

    Args:
        folder: the checkpoint; for a simulated model the one that lends its tokenizer and template.
        card: what is known of that already, where no settings ask for more of it; None: it is read.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming what is wrong with the checkpoint.
    """
    if settings.simulated is not None:
        return _simulated(settings, _lent(folder))
    with_mtp = settings.speculation == "mtp"
    if card is None or with_mtp:
        card = read_card(folder, mtp=with_mtp)
    return described(settings, card)


def described(settings: ModelSettings, card: ModelCard) -> ModelDescription:
    """The model of `card`, served as `settings` want it; raises as `describe` does."""
    _check_speculation(settings, card)
    card, dtype = card.kept_in(settings.quantization), settings.dtype or card.dtype
    notes = list(card.notes)
    adapters = tuple(read_adapter(name, path, card) for name, path in settings.adapters.items())
    notes += filter(None, (each.doubt(settings.id, card) for each in adapters))
    splits = splits_of(card, settings.ranks, settings.quantization)
    if not splits:  # which is refused for what is in the way of the first that heads would allow
        splits = [next(filter(card.config.splits_into, ways(settings.ranks)), Split.evenly(settings.ranks))]
    weights = card.bytes_per_rank(splits[0], dtype, settings.quantization)
    filling = tuple(card.filling_per_rank(splits[0], dtype, settings.quantization))
    formats = card.formats_of_kinds(splits[0], settings.quantization)
    context_length, cut = _context_length(settings, card)
    notes += cut
    groups = card.cache_groups(splits[0].part, dtype, settings.kv_cache_dtype)
    if settings.host_state_memory and not any(group.kind == "state" for group in groups):
        notes.append("host_state_memory is not used: none of its layers keeps a state")
    return ModelDescription(
        id=settings.id,
        engine="transformer",
        architecture=card.architecture,
        card=card,
        dtype=dtype,
        context_length=context_length,
        rank_bytes=tuple(weights),
        filling=filling if any(filling) else (),
        overhead=Overhead(
            card.config,
            DTYPE_BYTES[dtype],
            splits[0].part,
            ranks=settings.ranks,
            packs_head=packs_head(dtype) and EMBEDDING not in formats,
            vision=card.vision,
            context_length=context_length,
            in_blocks=bool(formats),
            kernels=kernels_of(
                dtype,
                formats.values(),
                exact=settings.exact,
                kv_cache_dtype=settings.kv_cache_dtype,
                adapters=bool(adapters),
            ),
        ),
        defaults=_defaults(card.defaults, settings),
        eos_ids=card.eos_ids,
        completion=card.completion,
        embedding=card.embedding,
        vector_size=card.embedder.size if card.embedder else card.config.hidden_size,
        embedder=card.embedder,
        reranker=card.reranker,
        whole=card.config.bidirectional,
        chat=card.chat,
        tools=card.tools,
        reasoning=_thinks(card, settings),
        created=card.created,
        notes=notes,
        text=TextFiles.of(card, settings.tool_format, settings.reasoning_format),
        adapters=adapters,
        max_output=settings.max_output,
        splits=tuple(splits),
    )


def splits_of(card: ModelCard, ranks: int, quantization: Quantization | None) -> list[Split]:
    """How so many ranks may share a model: evenly, where they can, and then the more evenly the sooner.

    Weights are kept in each way as they are in the first, so that a rank with less of them reads less.
    """

    @cache
    def kept(parts: int) -> object:
        split = Split.evenly(parts)  # of so many parts all weights are kept alike
        whole = card.has_whole_experts(split, quantization)
        return card.formats_of_kinds(split, quantization), whole

    found = [split for split in ways(ranks) if card.splits_into(split, quantization)]
    found.sort(key=lambda split: max(split.counts) / split.parts)
    return [split for split in found if kept(split.parts) == kept(found[0].parts)]


def _context_length(settings: ModelSettings, card: ModelCard) -> tuple[int, list[str]]:
    """Tokens, and what is to be said where somebody might expect more."""
    limit, notes = card.config.context_limit, []
    if settings.context_length is not None and settings.context_length > limit:
        notes.append(
            f"context_length {settings.context_length} is cut to {limit}, which the model was made for"
        )
    step = settings.max_step_tokens
    if card.config.bidirectional and step is not None and step < limit:
        limit = step
        notes.append(f"inputs have at most {limit} tokens, for a step has no more, and each is read in one")
    return min(settings.context_length or card.context_length, limit), notes


def _check_speculation(settings: ModelSettings, card: ModelCard) -> None:
    """See that tokens can be guessed for it, where they shall be. CortexError where not."""
    if settings.speculation is not None and card.config.bidirectional:
        raise CortexError(
            Code.MODEL_LOAD_FAILED,
            f"speculation {settings.speculation} is not for {card.architecture}: it writes no text. "
            "Leave it out",
        )


def _thinks(card: ModelCard, settings: ModelSettings) -> bool:
    """Whether it does, as its templates say or the user."""
    said = settings.reasoning_format
    return card.reasoning if said is None else said != "none"


def _defaults(checkpoint: GenerationDefaults, settings: ModelSettings) -> GenerationDefaults:
    """The checkpoint's, and over them what the user said."""
    said = {
        name: value for name, value in msgspec.structs.asdict(settings.sampling).items() if value is not None
    }
    return msgspec.structs.replace(checkpoint, **said)


class _Lent(NamedTuple):
    """What simulated models have of another one, which comes with this package."""

    card: ModelCard
    answer: list[int]  # what all of them say


@cache
def _lent(folder: Path) -> _Lent:
    """It is read once: hundreds of simulated models may have it."""
    card = read_card(folder)
    tokenizer = TextTokenizer(card.tokenizer_file, card.config.vocab_size, shown=())
    return _Lent(card, tokenizer.encode(SIMULATED_TEXT, special=False))


def _simulated(settings: ModelSettings, lent: _Lent) -> ModelDescription:
    plan, lender = settings.simulated, lent.card
    return ModelDescription(
        id=settings.id,
        engine="simulated",
        architecture="simulated",
        card=None,
        dtype="bfloat16",
        context_length=settings.context_length or plan.context_length,
        rank_bytes=(plan.memory,) * settings.ranks,
        filling=(),
        splits=(Split.evenly(settings.ranks),),
        overhead=None,
        defaults=_defaults(GenerationDefaults(), settings),
        eos_ids=lender.eos_ids,
        completion=True,
        embedding=False,
        vector_size=0,
        embedder=None,
        reranker=None,
        whole=False,
        chat=lender.chat,
        tools=lender.tools,
        reasoning=_thinks(lender, settings),
        created=lender.created,
        notes=[],
        text=TextFiles.of(lender, settings.tool_format, settings.reasoning_format),
        simulated=SimulatedSpec(
            step_seconds=plan.step_seconds,
            prefill_tokens_per_second=plan.prefill_tokens_per_second,
            load_seconds=plan.load_seconds,
            memory_bytes=plan.memory,
            answer=lent.answer,
            failure=plan.failure,
        ),
        max_output=settings.max_output,
    )
