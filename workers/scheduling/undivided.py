"""Where a step may end in a prompt with images whose tokens see each other: not inside of one.

What of such an image is in cached pages was computed with all of it, so a step may begin inside.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipc.worker_messages import PlacedImage


def undivided(images: Sequence[PlacedImage], start: int, end: int, most: int) -> int:
    """Where a step that feeds tokens from `start` on ends, and would rather end at `end`.

    That is before an image that it would divide, or behind one that it begins with.

    Args:
        images: of the prompt, in order.
        most: where it may end at most, for the sake of an image.

    Returns:
        `start` where nothing can be fed now.
    """
    for image in images:
        if image.together and image.start < end < image.end:
            if start < image.start:
                return image.start
            return image.end if image.end <= most else start
    return end
