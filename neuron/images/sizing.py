"""How large an image is for a model, and its pixels at that size: for Qwen, Pixtral, SigLIP and Gemma 4."""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import NamedTuple

from PIL import Image

from neuron.images.opening import in_colours, opened, upright_size
from neuron.refusals import bad_request
from workers.checkpoints.vision import PanAndScan, Vision

MAX_RATIO = 200  # of the sides
DIGEST_BYTES = 16


Box = tuple[int, int, int, int]  # pixels from the left and the top to the first column and row behind it


class Sized(NamedTuple):
    """An image that is not yet read, and the tokens that it will be."""

    image: Image.Image
    rows: int  # of tokens
    columns: int
    param: str
    gap: int = 0  # tokens of text behind each row
    box: Box | None = None  # of the upright image what is shown; None: all of it

    @property
    def tokens(self) -> int:
        """With those of gaps."""
        return self.rows * (self.columns + self.gap)


def sized(data: bytes, vision: Vision, param: str) -> Sized:
    """Look at an image's header.

    Raises:
        CortexError: BAD_REQUEST naming `param`.
    """
    image = opened(data, param)
    rows, columns = fitted(*upright_size(image), vision, param)
    return Sized(image, rows // vision.side, columns // vision.side, param, vision.gap)


def views(data: bytes, vision: Vision, param: str) -> list[Sized]:
    """An image as the model is shown it: as a whole, and a long one in crops besides, where it knows such.

    Raises:
        CortexError: BAD_REQUEST naming `param`.
    """
    whole = sized(data, vision, param)
    about = None if vision.siglip is None else vision.siglip.crops
    boxes = [] if about is None else crops(*upright_size(whole.image), about)
    return [whole, *(whole._replace(image=opened(data, param), box=box) for box in boxes)]


def crops(rows: int, columns: int, about: PanAndScan) -> list[Box]:
    """Where an image of so many pixels is cut; nowhere, where it is too small or nearly a square."""
    longer, shorter = max(rows, columns), min(rows, columns)
    if longer / shorter < about.ratio:
        return []
    count = min(max(2, min(math.floor(longer / shorter + 0.5), longer // about.least)), about.most)
    size = -(-longer // count)
    if min(size, shorter) < about.least:
        return []
    cuts = [(start, min(start + size, longer)) for start in range(0, longer, size)]
    if columns >= rows:
        return [(start, 0, end, rows) for start, end in cuts]
    return [(0, start, columns, end) for start, end in cuts]


def fitted(rows: int, columns: int, vision: Vision, param: str) -> tuple[int, int]:
    """The nearest size, in pixels, whose sides are whole tokens and whose area the model takes; or the only
    one that it takes.

    Raises:
        CortexError: BAD_REQUEST naming `param`: one side is too long beside the other.
    """
    if vision.siglip is not None:
        size = math.isqrt(vision.max_pixels)
        return size, size
    if vision.gemma4 is not None:
        return _filling(rows, columns, vision)
    if max(rows, columns) > MAX_RATIO * min(rows, columns):
        raise bad_request(
            param, f"{param} is {columns} x {rows} pixels; one side may be {MAX_RATIO} times the other"
        )
    side, area = vision.side, rows * columns
    if vision.pixtral is not None:
        by = max(1.0, rows / vision.pixtral.longest, columns / vision.pixtral.longest)
        smaller = [max(1, math.floor(each / by)) if by > 1 else each for each in (rows, columns)]
        return -(-smaller[0] // side) * side, -(-smaller[1] // side) * side
    nearest = [round(each / side) * side for each in (rows, columns)]
    if math.prod(nearest) > vision.max_pixels:
        by = math.sqrt(area / vision.max_pixels)
        nearest = [max(side, math.floor(each / by / side) * side) for each in (rows, columns)]
    elif math.prod(nearest) < vision.min_pixels:
        by = math.sqrt(vision.min_pixels / area)
        nearest = [math.ceil(each * by / side) * side for each in (rows, columns)]
    return nearest[0], nearest[1]


def _filling(rows: int, columns: int, vision: Vision) -> tuple[int, int]:
    """The largest size of about that shape, in pixels, whose sides are whole tokens; of a line one row or
    column of them."""
    side = vision.side
    by = math.sqrt(vision.max_pixels / (rows * columns))
    high, wide = (math.floor(by * each / side) * side for each in (rows, columns))
    longest = vision.max_pixels // side
    if not high:
        return side, min(columns // rows * side, longest)
    if not wide:
        return min(rows // columns * side, longest), side
    return high, wide


def pixels(image: Sized, vision: Vision) -> tuple[bytes, bytes]:
    """Its pixels at that size, row by row in red, green and blue, and their digest.

    The image itself is given up, which may be hundreds of megabytes once it is read.

    Raises:
        CortexError: BAD_REQUEST naming its field, the file is damaged.
    """
    size = image.columns * vision.side, image.rows * vision.side
    colours = in_colours(image.image, image.param)
    image.image.close()
    if image.box is not None:
        colours = colours.crop(image.box)
    way = Image.Resampling.BICUBIC if vision.siglip is None else Image.Resampling.BILINEAR
    made = colours.resize(size, way).tobytes()
    digest = blake2b(made, digest_size=DIGEST_BYTES, person=b"%d" % image.columns).digest()
    return made, digest
