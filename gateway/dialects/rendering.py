"""Answers, written where it holds up few.

Thousands of vectors or log-probabilities take a tenth of a second and more to write. That is done by the
threads that read large bodies, piece by piece, and accounts take turns for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from gateway.dialects.parsing import in_turn
from ipc.messages.replies import Delta, Embeddings, Finished, Ranked, Reply, Tokens

T = TypeVar("T")

# More than that is dear: it takes some milliseconds.
VECTORS = 128 << 10  # bytes
LOGPROBS = 100  # tokens, each with up to 20 alternatives
TOKENS = 20_000  # ids
DOCUMENTS = 500  # that are ranked


async def rendered(write: Callable[[], T], replies: Iterable[Reply], account: str) -> T:
    """What `write` makes of replies of a neuron."""
    return await in_turn(write, account) if _are_dear(replies) else write()


def _are_dear(replies: Iterable[Reply]) -> bool:
    tokens = 0
    for reply in replies:
        match reply:
            case Delta(logprobs=entries, prompt_logprobs=of_prompt):
                tokens += len(entries) + len(of_prompt or ())
            case Finished(choices=choices, prompt_logprobs=of_prompts):
                tokens += sum(len(choice.logprobs) for choice in choices) + sum(map(len, of_prompts or ()))
            case Embeddings(vectors=vectors):
                return sum(map(len, vectors)) > VECTORS
            case Ranked(scores=scores):
                return len(scores) > DOCUMENTS
            case Tokens(token_ids=token_ids):
                return len(token_ids) > TOKENS
    return tokens > LOGPROBS
