"""Steps of attention over pages at random, beside whole sequences: what every backend has to agree with."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ipc.model_settings import KVCacheDtype
from ipc.worker_messages import PAGE_SIZE, CacheGroup, PlacedImage, SamplingParams
from workers.attention.backend import AttentionBackend
from workers.cache.paged import KVCache
from workers.cache.quantised import CODES, dequantise, quantise
from workers.checkpoints.caches import first_page_seen
from workers.checkpoints.layers import PageShape
from workers.execution.input_buffers import InputBuffers
from workers.scheduling.undivided import undivided
from workers.step.batch import Segment, Slot
from workers.step.pages import pages_for
from workers.step.plan import HOLE, NewSequence

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
VALUE_DIM = 10  # where values are a part of keys
LONGEST = 200  # tokens
GROUPS = [
    CacheGroup(kind="full", layers=[1]),
    CacheGroup(kind="window", layers=[0, 2], window=50),
    CacheGroup(kind="window", layers=[3], window=7),
    CacheGroup(kind="chunk", layers=[4], window=64),
]
SEEING = [*GROUPS[:3], CacheGroup(kind="full", layers=[4], in_order=True)]  # as of Gemma 3 and 4


def reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    group: CacheGroup,
    sinks: Tensor | None,
    images: Sequence[PlacedImage] = (),
) -> Tensor:  # [tokens, heads, head_dim]
    """All tokens of a sequence at once."""
    keys, values = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q, keys) * HEAD_DIM**-0.5
    distance = torch.arange(len(q))[:, None] - torch.arange(len(q))
    seen = distance >= 0
    for image in () if group.in_order else images:
        seen[image.start : image.end, image.start : image.end] = True
    seen &= distance < (group.window or len(q))
    if group.kind == "chunk":
        number = torch.arange(len(q)) // group.window
        seen &= number[:, None] == number
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, len(q), 1)), dim=-1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(q)], values)


def attend_in_any_cut(
    make: Callable[..., AttentionBackend],
    device: str,
    seed: int,
    kind: str,
    *,
    exact: bool = False,
    longest: int = LONGEST,
    sequences: int = 5,
    groups: Sequence[CacheGroup] = GROUPS,
    unused: int = 0,
    kv_cache_dtype: KVCacheDtype | None = None,
    images: bool = False,
) -> None:
    """Feed random sequences in random steps, and compare what each token gets.

    Pages are handed out at random, hold what is not finite, and go as soon as no token sees them.

    Args:
        make: the backend, of its arguments.
        kind: "plain", "sinks" or "latent".
        unused: pages of the pool that no sequence has.
        kv_cache_dtype: tokens attend over what is kept of keys and values, those of the step included.
        images: sequences have such, whose tokens see each other, and no step divides one.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths = [rng.randint(1, longest) for _ in range(sequences)]
    total = sum(map(pages_for, lengths)) * len(groups)
    latent = kind == "latent"
    sinks = torch.randn(HEADS, generator=generator) if kind == "sinks" else None
    kv_heads = 1 if latent else KV_HEADS
    cache = KVCache(
        groups,
        dict.fromkeys(
            range(sum(len(group.layers) for group in groups)), PageShape(2 - latent, kv_heads, HEAD_DIM)
        ),
        pages=total + unused,
        dtype=torch.float32,
        device=torch.device(device),
        kv_cache_dtype=kv_cache_dtype,
    )
    for layer in (*cache.layers.values(), *cache.scales.values()):
        layer[:, :total].fill_(float("nan") if layer.is_floating_point() else 127)
    attention = make(
        cache, 4 * longest, len(lengths), pages_for(longest), exact, value_dim=VALUE_DIM if latent else None
    )
    buffers = InputBuffers(attention.sizes, torch.device(device))
    shapes = [(length, heads, HEAD_DIM) for length in lengths for heads in (HEADS, kv_heads, kv_heads)]
    data = [torch.randn(*shape, generator=generator) for shape in shapes]
    given = [data[3 * index : 3 * index + 3] for index in range(len(lengths))]
    free = rng.sample(range(total), total)
    shown = [some_images(rng, length) if images else [] for length in lengths]
    added = [NewSequence(i, 1, b"", SamplingParams(), images=shown[i]) for i in range(len(lengths))]
    slots = [Slot(new, array("q"), [], 0) for new in added]
    for slot in slots:
        slot.tables = [array("q") for _ in groups]
    outputs: list[list[list[Tensor]]] = [[[] for _ in cache.layers] for _ in lengths]
    while True:
        left = [index for index, slot in enumerate(slots) if slot.num_computed < lengths[index]]
        if not left:
            break
        counts = {}
        for index in rng.sample(left, rng.randint(1, len(left))):
            most = lengths[index] - slots[index].num_computed
            count = rng.choice((1, 1, min(most, 2), min(most, PAGE_SIZE), rng.randint(1, most)))
            begun = slots[index].num_computed
            counts[index] = undivided(shown[index], begun, begun + count, lengths[index]) - begun
        segments, row = [], 0
        for index, count in sorted(counts.items(), key=lambda pair: pair[1] > 1):
            slot = slots[index]
            for table, group in zip(slot.tables, groups, strict=True):
                while len(table) < pages_for(slot.num_computed + count):
                    table.append(free.pop())
                for number in range(first_page_seen(group, slot.num_computed)):
                    if table[number] != HOLE:
                        free.insert(rng.randint(0, len(free)), table[number])
                        table[number] = HOLE
            segments.append(Segment(slot, range(row, row + count), slot.num_computed))
            row += count
        prepared = attention.prepare(segments, buffers.fill(attention.arrays(segments)))
        for layer in range(len(cache.layers)):
            parts = [
                torch.cat([given[s.slot.new.slot][part][s.start : s.end] for s in segments]).to(device)
                for part in range(3)
            ]
            if latent:
                parts[2] = None
            given_sinks = None if sinks is None else sinks.to(device)
            out = attention.run(prepared, layer, *parts, given_sinks)
            # a layer without keys of its own reads the same
            if layer == 0:
                assert torch.equal(attention.run(prepared, layer, parts[0], None, None, given_sinks), out)
            for segment in segments:
                outputs[segment.slot.new.slot][layer].append(out[segment.rows.start : segment.rows.stop])
        for segment in segments:
            segment.slot.num_computed = segment.end
    for index in range(len(lengths)):
        for layer, parts in enumerate(outputs[index]):
            group = groups[cache.group_of[layer]]
            q, keys, values = given[index]
            if kv_cache_dtype is not None:
                keys, values = (dequantise(*quantise(x, CODES[kv_cache_dtype])) for x in (keys, values))
            values = keys[..., :VALUE_DIM] if latent else values
            wanted = reference(q, keys, values, group, sinks, shown[index])
            torch.testing.assert_close(torch.cat(parts).cpu(), wanted)


def some_images(rng: random.Random, length: int) -> list[PlacedImage]:
    """Some in a sequence of that length, now and then one beside the other."""
    found, start = [], rng.randint(0, 2)
    while (size := rng.randint(1, 60)) <= length - start:
        found.append(PlacedImage(b"", start, 1, size, together=True))
        start += size + rng.choice((0, 1, rng.randint(2, 40)))
    return found
