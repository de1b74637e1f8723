"""Answers, written where it holds up few.

Thousands of vectors or log-probabilities take a tenth of a second and more to write. That is done by the
threads that read large bodies, piece by piece, and accounts take turns for them.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.dialects.parsing import in_turn
from ipc.messages.replies import Embeddings, Finished, Reply, Tokens

# More than that is dear: it takes some milliseconds.
VECTORS = 128 << 10  # bytes
LOGPROBS = 200  # tokens, each with up to 20 alternatives
TOKENS = 20_000  # ids


async def rendered(write: Callable[[], bytes], reply: Reply, account: str) -> bytes:
    """What `write` makes of a neuron's reply."""
    return await in_turn(write, account) if _is_dear(reply) else write()


def _is_dear(reply: Reply) -> bool:
    match reply:
        case Finished(choices=choices, prompt_logprobs=of_prompts):
            entries = [choice.logprobs for choice in choices] + (of_prompts or [])
            return sum(map(len, entries)) > LOGPROBS
        case Embeddings(vectors=vectors):
            return sum(map(len, vectors)) > VECTORS
        case Tokens(token_ids=token_ids):
            return len(token_ids) > TOKENS
    return False
