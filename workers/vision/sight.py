"""What the language model gets of the images in its sequences, step by step, on each rank."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ipc.worker_messages import PlacedImage
from workers.checkpoints.vision import Vision
from workers.models.decoder import Seen
from workers.parallel import RankGroup
from workers.sampling.inputs import sent
from workers.step.batch import Segment
from workers.step.gallery import Gallery
from workers.step.plan import LookAt
from workers.vision.gemma4 import Gemma4Tower
from workers.vision.gemma4_unified import Gemma4Embedder
from workers.vision.pixtral import PixtralTower
from workers.vision.qwen3_vl import Qwen3VLTower
from workers.vision.siglip import SiglipTower
from workers.vision.tower import Look, Tower


def tower(vision: Vision, dtype: torch.dtype, device: torch.device) -> Tower:
    """The one of that kind; its weights are to be read."""
    if vision.pixtral is not None:
        return PixtralTower(vision, dtype, device)
    if vision.gemma4 is not None:
        return (Gemma4Embedder if vision.gemma4.unified else Gemma4Tower)(vision, dtype, device)
    return (Qwen3VLTower if vision.siglip is None else SiglipTower)(vision, dtype, device)


class Sight:
    """Rank 0 looks at each image once, and remembers what it saw; the others are told, row by row.

    It looks at an image when a step shows it, or before that in pieces, as plans say.

    Args:
        remembered: bytes of that, at most, beside what the step itself needs. They are on the CPU.
    """

    def __init__(
        self, vision: Vision, dtype: torch.dtype, group: RankGroup, gallery: Gallery, remembered: int
    ) -> None:
        self.vision, self.dtype, self.group, self.gallery = vision, dtype, group, gallery
        self.tower = tower(vision, dtype, group.device) if group.rank == 0 else None
        self._width = (1 + len(vision.deepstack)) * vision.out_size
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()
        self._left = remembered
        self._begun: tuple[bytes, Look] | None = None
        self._looked = 0  # multiplications, in this step

    def look_on(self, order: LookAt | None) -> bool:
        """Look at an image for a while; whether it is all seen now."""
        self._looked = 0
        if order is None or self.tower is None:
            return False
        image = order.image
        if image.digest not in self._seen:
            self._look(image, order.work)
        return image.digest in self._seen

    def end_step(self, order: LookAt | None) -> int:
        """How much was done for images; what was begun is let go, but for what of `order` is."""
        if order is None:
            self._begun = None
        return self._looked

    def look(self, segments: Sequence[Segment], ahead: int = 0) -> Seen | None:
        """What of these is seen; None: it is all text.

        Args:
            ahead: 1, where each row stands for the token behind its own. An image that begins right behind a
                segment is none that this step shows, and may not have been looked at.
        """
        rows: list[int] = []
        parts: list[tuple[PlacedImage, int, int]] = []
        for segment in segments:
            for image in segment.slot.new.images:
                first, end = max(segment.start + ahead, image.start), min(segment.end + ahead, image.end)
                if image.start < segment.end and first < end:
                    row = segment.rows.start - segment.start - ahead + image.start
                    own = range(first - image.start, end - image.start)
                    rows.extend(row + each for each in own if each % image.across < image.columns)
                    parts.append((image, _before(image, own.start), _before(image, own.stop)))
        if not rows:
            return None
        device = self.group.device
        if self.tower is None:
            features = torch.empty(len(rows), self._width, dtype=self.dtype, device=device)
        else:
            features = torch.cat([self._features(image)[first:end].to(device) for image, first, end in parts])
        return Seen(sent(rows, device), self.group.from_first(features))

    def _features(self, image: PlacedImage) -> Tensor:  # [tokens, width]
        if image.digest not in self._seen:
            self._look(image)
        self._seen.move_to_end(image.digest)
        return self._seen[image.digest]

    def _look(self, image: PlacedImage, until: float = math.inf) -> None:
        """Look at an image until so much was done in this step, and remember what was seen if that is all."""
        begun, self._begun = self._begun, None  # what fails is over
        if begun is None or begun[0] != image.digest:
            self._forget(keep=0)
            side = self.vision.side
            pixels = torch.frombuffer(self.gallery[image.digest], dtype=torch.uint8)
            begun = image.digest, self.tower.look(pixels.view(image.rows * side, image.columns * side, 3))
        try:
            while self._looked < until:
                self._looked += next(begun[1])
        except StopIteration as end:
            self._remember(image.digest, end.value.cpu())
        else:
            self._begun = begun

    def _remember(self, digest: bytes, found: Tensor) -> None:
        self._seen[digest] = found
        self._left -= found.nbytes
        self._forget(keep=1)

    def _forget(self, keep: int) -> None:
        """Let the oldest go where all are too much: of a single one that is, there is no more until the next
        look."""
        while self._left < 0 and len(self._seen) > keep:
            _, oldest = self._seen.popitem(last=False)
            self._left += oldest.nbytes


def _before(image: PlacedImage, place: int) -> int:
    """How many of its own tokens an image has before its token number `place`, which may be of a gap."""
    row, column = divmod(place, image.across)
    return row * image.columns + min(column, image.columns)
