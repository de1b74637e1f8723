"""Where the tokens of a prompt with images stand, for a rotary embedding of three parts (M-RoPE).

A token of text has one position for all three: the one after the last. The tokens of an image all have the
time at which it begins, and each the row and the column where it is, from there on; the text behind goes on
from the longer side (https://arxiv.org/abs/2409.12191, section 2.1).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ipc.worker_messages import PlacedImage


def shown(images: Sequence[PlacedImage], start: int, end: int) -> list[PlacedImage]:
    """Those that a token from `start` to `end` is part of."""
    return [image for image in images if image.start < end and start < image.end]


def axes(images: Sequence[PlacedImage], start: int, end: int) -> tuple[array[int], ...]:
    """Time, row and column of each token from `start` to `end`, in a sequence with these images, which are in
    order."""
    found = array("q"), array("q"), array("q")
    shift, done = 0, start  # of positions before tokens; tokens that have theirs

    def text(until: int) -> None:
        positions = range(done + shift, until + shift)
        for axis in found:
            axis.extend(positions)

    for image in images:
        if image.in_line:
            continue
        if image.start >= end:
            break
        if done < image.start:
            text(image.start)
            done = image.start
        first = image.start + shift
        for token in range(done - image.start, min(end, image.end) - image.start):
            row, column = divmod(token, image.columns)
            for axis, place in zip(found, (0, row, column), strict=True):
                axis.append(first + place)
        done = max(done, min(end, image.end))
        shift += max(image.rows, image.columns) - (image.end - image.start)
    if done < end:
        text(end)
    return found
