"""Layers that keep the same share pages, and all pages are of one size."""

from __future__ import annotations

import pytest

from ipc.worker_messages import PAGE_SIZE
from workers.checkpoints.caches import LayerCache, first_page_seen, group_layers, page_bytes, state_bytes

FULL = LayerCache("full", bytes_per_token=512)
CHUNK = LayerCache("chunk", 4 * PAGE_SIZE, bytes_per_token=512)
WINDOW = LayerCache("window", 1024, bytes_per_token=512)
STATE = LayerCache("state", bytes_per_sequence=1 << 21)


def shapes(layers: list[LayerCache]) -> list[tuple[str, int]]:
    return [(group.kind, len(group.layers)) for group in group_layers(layers)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([FULL] * 28, [("full", 28)]),
        ([WINDOW] * 32, [("window", 32)]),
        ([LayerCache("latent", bytes_per_token=1152)] * 61, [("latent", 61)]),
        # Gemma 3 (27B): five layers with a window to one without
        (([WINDOW] * 5 + [FULL]) * 10 + [WINDOW] * 2, [("full", 10)] + [("window", 13)] * 4),
        # Qwen3 with `max_window_layers` 28 of 36
        ([FULL] * 28 + [WINDOW] * 8, [("full", 9), ("full", 9), ("full", 10), ("window", 8)]),
        # a hybrid: three layers with a state to one with attention
        (([STATE] * 3 + [FULL]) * 12, [("full", 12), ("state", 36)]),
        # heads of another size where there is no window
        (
            ([WINDOW] * 5 + [LayerCache("full", bytes_per_token=1024)]) * 4,
            [("full", 4), ("window", 10), ("window", 10)],
        ),
    ],
)
def test_layers_are_grouped_by_what_they_keep(layers, expected):
    assert sorted(shapes(layers)) == sorted(expected)
    groups = group_layers(layers)
    assert sorted(number for group in groups for number in group.layers) == list(range(len(layers)))
    used = sum(PAGE_SIZE * group.bytes_per_token for group in groups)
    tokens = [group for group in groups if group.kind != "state"]
    assert len(tokens) * page_bytes(groups) <= used * 1.125, "pages are larger than what is in them"
    assert state_bytes(groups) == sum(layer.bytes_per_sequence for layer in layers)


def test_layers_that_fit_no_common_size_waste_what_they_must():
    odd = [LayerCache("full", bytes_per_token=1000), LayerCache("window", 64, bytes_per_token=300)]
    assert shapes(odd) == [("full", 1), ("window", 1)]
    assert page_bytes(group_layers(odd)) == 1000 * PAGE_SIZE


def test_a_layer_that_keeps_nothing_is_in_no_group():
    groups = group_layers([FULL, WINDOW, None, FULL, None])
    assert sorted(number for group in groups for number in group.layers) == [0, 1, 3]


def test_groups_that_keep_everything_come_first():
    kinds = [group.kind for group in group_layers([STATE, WINDOW, FULL])]
    assert kinds == ["full", "window", "state"]


@pytest.mark.parametrize(
    ("layer", "position", "page"),
    [
        (FULL, 5_000, 0),
        (WINDOW, 1_000, 0),
        (WINDOW, 1_023, 0),
        (WINDOW, 1_023 + PAGE_SIZE - 1, 0),
        (WINDOW, 1_023 + PAGE_SIZE, 1),
        (CHUNK, 8 * PAGE_SIZE - 1, 4),
        (CHUNK, 8 * PAGE_SIZE, 8),
        (STATE, 0, 0),
        (STATE, PAGE_SIZE, 0),
        (STATE, PAGE_SIZE + 1, 1),
    ],
)
def test_the_first_page_that_a_token_needs(layer, position, page):
    [group] = group_layers([layer])
    assert first_page_seen(group, position) == page
