"""What layers keep of the tokens before, and how layers are grouped so that their pages are alike.

All pages of a model have the same size in bytes, so that any page can serve any group: a pool needs no fixed
shares, and what windows give back serves the layers that see everything. Layers of one kind are therefore put
into groups of about as many bytes as those of another kind: 5 layers with a window for each one without make
five groups and one, each with its own list of pages for a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec

from ipc.worker_messages import PAGE_SIZE, CacheGroup, CacheKind

ORDER: tuple[CacheKind, ...] = (
    "full",
    "latent",
    "chunk",
    "window",
    "state",
)  # of groups: those that keep most come first
# States of a sequence at once: the one at a page's end, and the one that a step makes of it.
LIVE_STATES = 2
# And beside those of sequences: the zeros that each begins with, and where padded steps write. On a CPU zeros
# that nobody wrote to take no memory, and no step is padded.
SPARE_STATES = {"cpu": 0, "cuda": 2}
KEPT_STATES = 4  # of texts that may go on, beside those of sequences that run
SCALE_BYTES = 2  # of keys and values in 8 bits: one scale for each head of a token, beside its elements
MOST_WASTE = 1 / 8  # of a page may be without use where layers do not divide evenly into groups


class LayerCache(msgspec.Struct, frozen=True):
    """What one layer keeps on one rank."""

    kind: CacheKind
    window: int = 0  # tokens that a token sees at most, itself included
    bytes_per_token: int = 0
    bytes_per_sequence: int = 0  # of a state
    in_order: bool = False  # tokens of an image see none behind them here


def group_layers(
    layers: Sequence[LayerCache | None], beside: Sequence[LayerCache | None] = ()
) -> list[CacheGroup]:
    """The groups of a model's layers, of which each has one list of pages for every sequence.

    A layer that is None keeps nothing, and is in no group; one that keeps something `beside` is in two.

    Groups are as few as they can be while no more than MOST_WASTE of their pages would be unused.
    """
    alike: dict[LayerCache, list[int]] = {}
    for number, layer in chain(enumerate(layers), enumerate(beside)):
        if layer is not None:
            alike.setdefault(layer, []).append(number)
    paged = {layer: numbers for layer, numbers in alike.items() if layer.kind != "state"}
    size = _group_bytes(paged)
    groups = []
    for layer, numbers in alike.items():
        count = 1 if layer.kind == "state" else _num_groups(layer, len(numbers), size)
        for part in _shares(numbers, count):
            group = CacheGroup(
                kind=layer.kind,
                layers=part,
                window=layer.window,
                bytes_per_token=layer.bytes_per_token * len(part),
                bytes_per_sequence=layer.bytes_per_sequence * len(part),
                in_order=layer.in_order,
            )
            groups.append(group)
    return sorted(groups, key=lambda group: (ORDER.index(group.kind), group.window, group.layers))


def page_bytes(groups: Iterable[CacheGroup]) -> int:
    """Bytes of a page on one rank: enough for PAGE_SIZE tokens of any group."""
    return PAGE_SIZE * max((group.bytes_per_token for group in groups), default=0)


def state_bytes(groups: Iterable[CacheGroup]) -> int:
    """Bytes of what a sequence keeps on one rank beside its pages, whatever its length."""
    return sum(group.bytes_per_sequence for group in groups)


def num_states(groups: Iterable[CacheGroup], sequences: int) -> int:
    """States that are of use to so many sequences, and beside them; none, where no layer keeps one."""
    return (LIVE_STATES * sequences + KEPT_STATES) * sum(group.kind == "state" for group in groups)


def first_page_seen(group: CacheGroup, position: int) -> int:
    """The number in a sequence of the first page that a token at `position` needs of `group`.

    A chunk begins with a page. A state stands for all tokens before it: only the page that ends there, or has
    it inside, is needed.
    """
    if group.kind == "window":
        return max(0, position - group.window + 1) // PAGE_SIZE
    if group.kind == "chunk":
        return position // group.window * group.window // PAGE_SIZE
    if group.kind == "state":
        return max(0, position - 1) // PAGE_SIZE
    return 0


def most_pages(group: CacheGroup, num_tokens: int, chunk: int) -> int:
    """Pages that a sequence has in a group at most, while its first `num_tokens` are computed.

    Args:
        chunk: tokens of it in a step, at most.
    """
    if group.kind == "state":
        return 0
    if group.kind in ("window", "chunk"):
        num_tokens = min(num_tokens, group.window + chunk + PAGE_SIZE)
    return -(-num_tokens // PAGE_SIZE)


def _group_bytes(paged: dict[LayerCache, list[int]]) -> int:
    """Bytes per token that a group may have, so that all groups come near it."""
    total = sum(layer.bytes_per_token * len(numbers) for layer, numbers in paged.items())
    best = (0, 0.0, 0)  # (groups, waste, bytes)
    for layer, numbers in paged.items():
        for count in range(1, len(numbers) + 1):
            size = layer.bytes_per_token * count
            if any(size < other.bytes_per_token for other in paged):
                continue
            groups = sum(_num_groups(other, len(those), size) for other, those in paged.items())
            waste = groups * size / total - 1
            if waste <= MOST_WASTE and (not best[0] or (groups, waste) < best[:2]):
                best = (groups, waste, size)
    # layers so unlike that nothing is even: each page has room for the largest of them
    return best[2] or max((layer.bytes_per_token for layer in paged), default=0)


def _num_groups(layer: LayerCache, count: int, size: int) -> int:
    return -(-count // (size // layer.bytes_per_token))


def _shares(numbers: list[int], count: int) -> list[list[int]]:
    """`count` lists of about equal length, in order."""
    return [
        numbers[index * len(numbers) // count : (index + 1) * len(numbers) // count] for index in range(count)
    ]
