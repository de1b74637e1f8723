"""Pictures for tests, and files of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def noise(rows, columns, channels=3, seed=0):
    """`[rows, columns, channels]` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, channels), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    """The bytes of its file."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()
