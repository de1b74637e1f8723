"""Images that a prompt shows, and that were not looked at yet: before one of them a chunk of it ends.

A look is work beside that for the tokens, and is charged once for each sequence, when it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipc.worker_messages import PlacedImage
from workers.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Glance:
    """At an image, for a sequence whose next tokens are its."""

    sequence: Sequence
    number: int  # of the image, among those of its prompt

    @property
    def image(self) -> PlacedImage:
        return self.sequence.request.images[self.number]

    @property
    def is_seen(self) -> bool:
        return self.number < self.sequence.num_seen

    @property
    def is_over(self) -> bool:
        """Whether nobody needs it: all of its tokens are fed, or the sequence runs no more."""
        return self.sequence.slot is None or self.sequence.num_computed >= self.image.end

    def be_seen(self) -> None:
        self.sequence.num_seen = max(self.sequence.num_seen, self.number + 1)


def unseen(sequence: Sequence, start: int, end: int) -> Glance | None:
    """The first image that tokens from `start` to `end` are part of, and that was not seen."""
    for number in range(sequence.num_seen, len(sequence.request.images)):
        image = sequence.request.images[number]
        if start < image.end and image.start < end:
            return Glance(sequence, number)
    return None


def look_cost(sequence: Sequence, end: int) -> int:
    """Tokens that looks are worth at images that begin before `end`, and were not charged yet. At what is
    cached nobody looks."""
    images, cost = sequence.request.images, 0
    while sequence.num_charged < len(images) and images[sequence.num_charged].start < end:
        image = images[sequence.num_charged]
        cost += image.cost if image.end > sequence.num_reused else 0
        sequence.num_charged += 1
    return cost


def look_refund(sequence: Sequence, start: int) -> int:
    """The reverse, where nothing from `start` on was computed: what was charged for those images, at which
    somebody looks again."""
    images, cost = sequence.request.images, 0
    while sequence.num_charged and images[sequence.num_charged - 1].start >= start:
        sequence.num_charged -= 1
        image = images[sequence.num_charged]
        cost += image.cost if image.end > sequence.num_reused else 0
    return cost
