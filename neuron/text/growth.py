"""How much longer than itself a tokenizer may make a text, before it is cut into tokens or after.

Each step works on what the one before it wrote: eight that put a thousand letters in the place of one come to
more than any memory holds, from a file that is smaller than its vocabulary.
"""

from __future__ import annotations

import base64
from typing import Any

COMPATIBLE = 18  # characters of what a single one may stand for (U+FDFA, a whole phrase)
FACTORS = {  # characters that a step makes of one, at most
    "ByteLevel": 4,  # its bytes
    "BertNormalizer": 4,
    "NFC": 3,
    "NFD": 4,
    "NFKC": COMPATIBLE,
    "NFKD": COMPATIBLE,
    "Lowercase": 2,
    "Nmt": 1,
}
PREFIX = 64  # characters that may be put before a text and count for nothing


def growth(steps: Any) -> float:
    """Characters that a normalizer, pre-tokenizer or decoder, as a `tokenizer.json` has it, makes of one."""
    if isinstance(steps, list):
        product = 1.0
        for step in steps:
            product *= growth(step)
        return product
    if not isinstance(steps, dict):
        return 1.0
    return _factor(steps) * growth([value for key, value in steps.items() if key != "pattern"])


def _factor(step: dict[str, Any]) -> float:
    match step:
        case {"type": "Replace", "pattern": pattern, "content": str(content)}:
            text = pattern.get("String") if isinstance(pattern, dict) else None
            # What a regular expression finds may be nothing at all, before each character.
            return max(1.0, len(content) / len(text)) if text else 1.0 + len(content)
        case {"type": "Prepend", "prepend": str(text)}:
            return 1.0 + len(text) // PREFIX
        case {"type": "Precompiled", "precompiled_charsmap": str() | bytes() as table}:
            return _longest(table)
        case {"type": str(kind)}:
            return FACTORS.get(kind, 1)
    return 1.0


def _longest(table: str | bytes) -> float:
    """Bytes of the longest text in sentencepiece's table of characters: the size of a trie, the trie, then
    texts that end in a zero."""
    data = base64.b64decode(table)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return float(max(map(len, texts.split(b"\0")), default=1) or 1)
