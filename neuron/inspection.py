"""What a checkpoint is and what it would take here, from headers and small files: `neuron check PATH`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ipc.errors import CortexError
from ipc.messages.state import Device
from ipc.model_settings import KVCacheDtype, Quantization
from neuron.config import ModelSettings
from neuron.description import described, splits_of
from neuron.memory.fit import find_fit
from neuron.memory.ledger import Ledger
from neuron.memory.need import rates_of
from neuron.text.frontend import TextFiles, thoughts
from neuron.text.outline import Outline
from workers.checkpoints.blocks import QUANTIZATIONS
from workers.checkpoints.caches import state_bytes
from workers.checkpoints.card import ModelCard
from workers.checkpoints.computing import missing_type
from workers.checkpoints.files import refuse, refuse_absent
from workers.checkpoints.layers import Layer
from workers.checkpoints.presence import CONFIG
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE, Split
from workers.checkpoints.stored_tensors import StoredTensor, nbytes
from workers.checkpoints.vision import Vision

RANKS = (1, 2, 4, 8)  # for which sizes are told, where there are not several GPUs
NAMED = 3  # tokens that the model does not have


class Context(NamedTuple):
    """What fits in what is free now.

    Args:
        tokens: 0: not even the weights do.
        split: in which parts GPUs share the model then, where they do so unevenly.
    """

    tokens: int
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to keep the weights.

    Args:
        quantization: None: as they are stored.
        rank_bytes: of weights, on the rank that has most, by number of ranks, as this host's GPUs would share
            them; of those numbers that work.
        contexts: by device, and of each number of GPUs together that can share it.
        kept_in_8_bits: the same with `kv_cache_dtype`, where that makes more tokens of it.
    """

    quantization: Quantization | None
    rank_bytes: dict[int, int]
    contexts: dict[str, Context]
    kept_in_8_bits: dict[str, Context]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a checkpoint that can be served.

    Args:
        facts: what it is, and what each fact is about.
        problems: what cannot be served of it, though the rest can.
    """

    facts: dict[str, str]
    choices: list[Choice]
    notes: list[str]
    problems: list[str]


def inspect(path: Path, devices: list[Device], outline: Outline | None = None) -> Inspection:
    """Read what is at `path`: a folder, a GGUF file, or any file of a folder.

    Args:
        outline: of its tokenizer, where somebody reads that already.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file, and why it cannot be served.
    """
    if os.path.isfile(path) and path.suffix != ".gguf" and os.path.exists(path.parent / CONFIG):
        path = path.parent
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        refuse_absent(path, "is not there")
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read: {getattr(error, 'strerror', error)}")
    card = read_card(path)
    facts, problems, notes = _facts(card), [], list(card.notes)
    try:
        facts |= _text(card, outline or Outline(), notes)
    except CortexError as error:
        problems.append(error.message)
    choices = [_choice(path.resolve().name, card, each, devices) for each in (None, *QUANTIZATIONS)]
    stored = choices[0].rank_bytes
    choices[1:] = [each for each in choices[1:] if each.rank_bytes != stored]
    notes += _missing_types(card, devices)
    return Inspection(facts, choices, notes, problems)


def _missing_types(card: ModelCard, devices: Iterable[Device]) -> Iterator[str]:
    """Why it cannot be loaded on some GPUs, as it is."""
    for device in devices:
        if device.compute_capability is not None:
            major, _, minor = device.compute_capability.partition(".")
            if missing := missing_type(card.dtype, device.id, (int(major), int(minor))):
                yield missing


def _facts(card: ModelCard) -> dict[str, str]:
    model = card.config
    layers = Counter(map(_kept, card.layers))
    kept = ", ".join(f"{count} {kind}" for kind, count in layers.items())
    sizes: Counter[str] = Counter()
    for (shape, dtype), count in Counter(_stored(card.tensors.values())).items():
        sizes[dtype] += count * nbytes(shape, dtype)
    facts = {
        "family": f"{card.family} ({card.architecture})",
        "parameters": _parameters(card),
        "layers": f"{model.num_layers} of {model.hidden_size:,} ({kept})",
        "stored as": ", ".join(f"{kind} {size_of(size)}" for kind, size in sizes.most_common()),
        "context": f"{card.context_length:,} tokens",
    }
    if (vision := card.vision) is not None:
        facts["sees"] = _seen(vision)
    if not model.bidirectional:
        kept = f"{size_of(card.kv_bytes_per_token(WHOLE))} of keys and values, on one rank"
        if card.kept_whole is None:
            kept += (
                f"; {size_of(card.kv_bytes_per_token(WHOLE, None, 'int8'))} with kv_cache_dtype int8 or fp8"
            )
        facts["a token keeps"] = kept
    if size := state_bytes(card.cache_groups(WHOLE)):
        facts["a sequence keeps"] = f"{size_of(size)} of states besides, whatever its length, on one rank"
    return facts


def _seen(vision: Vision) -> str:
    """What becomes of images."""
    most = vision.max_pixels // vision.side**2
    return (
        f"{_sizes(vision, most)}; a look at the largest is as much work as {vision.look_cost(most):,} tokens"
    )


def _sizes(vision: Vision, most: int) -> str:
    if vision.min_pixels == vision.max_pixels:
        side = math.isqrt(vision.max_pixels)
        return f"images, of {most:,} tokens each: all are made {side} x {side} pixels"
    if vision.gemma4 is not None:
        return f"images, of up to {most:,} tokens each: all are made so large, or nearly"
    return f"images, of up to {most:,} tokens each: one for {vision.side} x {vision.side} pixels"


def _kept(layer: Layer) -> str:
    """What a layer keeps of the tokens before."""
    if layer.keys_of is not None:
        return "that read another's keys"
    if layer.kind == "nothing":
        return "that keep nothing"
    kept = f"{layer.kind} of {layer.window:,} tokens" if layer.window else layer.kind
    return f"{kept} beside a state" if layer.state_size and kept != "state" else kept


def _parameters(card: ModelCard) -> str:
    total = routed = 0
    alike = Counter((tensor.shape, ".experts." in name) for name, tensor in card.tensors.items())
    for (shape, of_experts), count in alike.items():
        total += count * math.prod(shape)
        routed += count * math.prod(shape) if of_experts else 0
    if not routed or card.config.experts is None:
        return _count(total)
    active = total - routed + routed * card.config.experts.chosen // card.config.experts.count
    return f"{_count(total)}, of which a token goes through {_count(active)}"


def _stored(tensors: Iterable[StoredTensor]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Shape and type of what stands in the files: a weight that is converted is its sources."""
    for tensor in tensors:
        for each in tensor.sources or (tensor,):
            yield each.shape, each.dtype


def _text(card: ModelCard, outline: Outline, notes: list[str]) -> dict[str, str]:
    files = TextFiles.of(card)
    templates = files.try_templates()
    tried = templates.values()
    added = outline.added_tokens(card.tokenizer_file, files.vocabulary_size)
    notes += notes_on(files.absent(added, templates))
    facts = {"vocabulary": f"{files.vocabulary_size:,} tokens"}
    if card.reranker is not None:
        return facts | {"does": "scores documents for a query"}
    if not card.completion:
        return facts | {"does": f"turns texts into vectors ({card.pooling})"}
    if not card.chat:
        return facts | {"does": "completes text; it has no chat template"}
    facts["chat templates"] = ", ".join(card.chat_templates)
    mentions = "" if card.tools else ", though no template mentions tools"
    facts["tool calls"] = files.calls_as + mentions
    tags, thinks = thoughts([text for each in tried for text in each.texts], files.thinks_as, added)
    facts["reasoning"] = f"{tags.opening} … {tags.closing}" if thinks else "none that a template knows"
    return facts


def notes_on(absent: list[str]) -> Iterator[str]:
    """What is said of tokens of the tokenizer that the model does not have."""
    if absent:
        named = ", ".join(map(repr, absent[:NAMED])) + (" and others" if len(absent) > NAMED else "")
        yield f"the model has no place for {named} of its tokenizer, and a text with that in it is refused"


def _choice(name: str, card: ModelCard, quantization: Quantization | None, devices: list[Device]) -> Choice:
    ledger = Ledger(devices)
    free = {device: ledger.free(device) for device in ledger.devices}
    gpus = [device for device in free if device != "cpu"]
    places = {device: ([device], 1) for device in free}
    counts = range(1, len(gpus) + 1) if len(gpus) > 1 else RANKS
    usual = {ranks: ways[0] for ranks in counts if (ways := splits_of(card, ranks, quantization))}
    places |= {f"{ranks} GPUs": (gpus, ranks) for ranks in usual if 1 < ranks <= len(gpus)}

    def context_at(place: str, kv_cache_dtype: KVCacheDtype | None) -> Context:
        chosen, ranks = places[place]
        settings = ModelSettings(
            id=name,
            quantization=quantization,
            devices=chosen,
            ranks=ranks,
            kv_cache_dtype=kv_cache_dtype,
        )
        try:
            need = replace(described(settings, card).need(settings), rates=rates_of(devices))
            fit = find_fit(need, free, [], "lru")
        except CortexError:
            return Context(0)
        return Context(fit.context_length, None if fit.split.even else fit.split)

    contexts = {place: context_at(place, None) for place in places}
    more = {}
    for place, context in contexts.items():
        if context.tokens < card.context_length and card.kept_whole is None:
            found = context_at(place, "int8")
            more |= {place: found} if found.tokens > context.tokens else {}
    here = {ranks: contexts[place].split for place, (_, ranks) in places.items()}
    taken = {ranks: here.get(ranks) or split for ranks, split in usual.items()}
    sizes = {ranks: max(card.bytes_per_rank(split, None, quantization)) for ranks, split in taken.items()}
    return Choice(quantization, sizes, contexts, more)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:,.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:,.1f}M"


def size_of(size: int) -> str:
    """Bytes, as one reads them."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} B"
