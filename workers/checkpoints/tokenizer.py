"""A model's tokenizer as a `tokenizer.json`, from wherever it stands."""

from __future__ import annotations

from pathlib import Path

from workers.checkpoints.files import read_bytes
from workers.checkpoints.gguf.header import SUFFIX, read_header
from workers.checkpoints.gguf.tokenizer import tokenizer_json


def read(path: Path) -> bytes:
    """The `tokenizer.json` at `path`, or the one that a GGUF file comes to.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file.
    """
    return tokenizer_json(read_header(path)) if path.suffix == SUFFIX else read_bytes(path)
