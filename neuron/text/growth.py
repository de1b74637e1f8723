"""How much longer than itself a tokenizer may make a text, before it is cut into tokens or after.

Each step works on what the one before it wrote: eight that put a thousand letters in the place of one come to
more than any memory holds, from a file that is smaller than its vocabulary.
"""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterator
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
}
PREFIX = 64  # characters that may be put before a text and count for nothing


def growth(steps: Any) -> float:
    """Characters that a normalizer, pre-tokenizer or decoder, as a `tokenizer.json` has it, makes of one.

    Replacements that follow each other grow a text together only where one may replace what another has put
    there. A run of others makes as much of each character as the one of them that makes the most.
    """
    product = in_run = 1.0
    put: set[str] = set()  # characters of what the run has put into the text
    for step in _steps(steps):
        match step:
            case {"type": "Replace", "pattern": pattern, "content": str(content)} if _takes_some(pattern):
                text = pattern.get("String")
                factor = max(1.0, len(content) / len(text or " "))
                apart = put.isdisjoint(text) if text else not put
                if factor > 1 and not apart:
                    product *= in_run
                    in_run, put = 1.0, set()
                in_run = max(in_run, factor)
                put |= set(content)
            case _:
                product *= in_run * _factor(step)
                in_run, put = 1.0, set()
    return product * in_run


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """What is done one after the other."""
    if isinstance(value, dict):
        if value.get("type") != "Sequence":
            yield value
        value = [inner for key, inner in value.items() if key != "pattern"]
    if isinstance(value, list):
        for inner in value:
            yield from _steps(inner)


def _factor(step: dict[str, Any]) -> float:
    match step:
        case {"type": "Replace", "content": str(content)}:  # of nothing, before each character
            return 1.0 + len(content)
        case {"type": "Prepend", "prepend": str(text)}:
            return 1.0 + len(text) // PREFIX
        case {"type": "Precompiled", "precompiled_charsmap": str() | bytes() as table}:
            return _longest(table)
        case {"type": str(kind)}:
            return FACTORS.get(kind, 1)
    return 1.0


def _takes_some(pattern: Any) -> bool:
    """Whether what is found is a character at least; False where that cannot be told."""
    match pattern:
        case {"String": str(text)}:
            return bool(text)
        case {"Regex": str(regex)}:
            plain = _CLASS.sub(lambda found: "." if found[1] else found[0], regex)
            if _OPTIONAL.search(plain):
                return False
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    return re._parser.parse(plain).getwidth()[0] > 0
            except (re.error, RecursionError, OverflowError, Warning):
                return False  # it is written as the tokenizers' library alone has it
    return False


# An escape, or what stands for one character and Python may not know.
_CLASS = re.compile(
    r"(\\[pP]\{[^}]*\}|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\[\]\\])*\])|\\.",
    re.DOTALL,
)
_OPTIONAL = re.compile(r"\{\d+\}\?")  # in Python that many, lazily; there, that many or none


def _longest(table: str | bytes) -> float:
    """Bytes of the longest text in sentencepiece's table of characters: the size of a trie, the trie, then
    texts that end in a zero."""
    data = base64.b64decode(table)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return float(max(map(len, texts.split(b"\0")), default=1) or 1)
