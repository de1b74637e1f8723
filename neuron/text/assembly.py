"""A tokenizer put together from what a GGUF file says of it.

The library reads a `tokenizer.json` with the interpreter's lock held: for the 262,144 tokens of Gemma 2.3 s,
in which a neuron serves nobody. The same lists as they are take it 0.9 s, and need not become JSON first.
"""

from __future__ import annotations

from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer, models


def assemble(parts: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.from_buffer` would make of `parts` as JSON. Raises what that does."""
    model = parts["model"]
    if model["type"] != "BPE":  # the others have no merges, which is what takes long
        return Tokenizer.from_buffer(msgspec.json.encode(parts))
    frame = parts | {"model": model | {"vocab": {}, "merges": []}, "added_tokens": []}
    tokenizer = Tokenizer.from_buffer(msgspec.json.encode(frame))
    given = {key: value for key, value in model.items() if key != "type" and value is not None}
    tokenizer.model = models.BPE(**given)
    for special, add in ((True, tokenizer.add_special_tokens), (False, tokenizer.add_tokens)):
        add([_added(token) for token in parts["added_tokens"] if token["special"] == special])
    return tokenizer


def _added(token: dict[str, Any]) -> AddedToken:
    settings = {key: value for key, value in token.items() if key not in ("id", "content")}
    return AddedToken(token["content"], **settings)
