"""What the largest step has in it on any device: that of `workers/execution/memory.py`, in numbers."""

from __future__ import annotations

from math import gcd

FLOAT, LONG = 4, 8  # bytes
LONG_CONTEXT = 3072  # tokens, of the one sequence of the step that has many
TOLD_ROWS = 64  # of logits at once, for the log-probabilities of a prompt
WIDE_OF_XIELU = 4  # float32 of each element of an MLP that is activated so
CHUNK, FEWEST = 128, 16  # of a vocabulary, that are looked at together, and the fewest of them


def prompts_of(tokens: int, sequences: int, context_length: int) -> list[int]:
    """Tokens of each sequence that has several: of one whose tokens are told about, and of the others."""
    left = tokens - sequences + 1  # the others have one each
    found = [told] if (told := min(left // 2, TOLD_ROWS, context_length)) > 0 else []
    left -= sum(found)
    while left > 0:
        found.append(min(left, context_length))
        left -= found[-1]
    return found


def padded_bytes(vocabulary: int) -> int:
    """Of each token of a vocabulary that has no chunks, in a copy of logits that is padded."""
    return FLOAT if gcd(vocabulary, CHUNK) < FEWEST else 0
