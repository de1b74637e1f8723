"""What is dear to write of an answer is written by a thread, and all else at once."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from gateway.dialects.openai.embeddings import EmbeddingFields, EmbeddingRenderer
from gateway.dialects.rendering import LOGPROBS, TOKENS, VECTORS, rendered
from ipc.messages.answers import Choice, Timings, TokenLogprob, Usage
from ipc.messages.replies import Delta, Embeddings, Finished, Reply, TokenCount, Tokens

ENTRY = TokenLogprob(token_id=1, token="a", raw=b"a", logprob=-1.0)
ABOUT = {"id": 1, "usage": Usage(), "timings": Timings()}


def finished(*tokens: int) -> Finished:
    """An answer of so many tokens in each choice, with what is known of each."""
    return Finished(choices=[Choice(reason="stop", logprobs=[ENTRY] * count) for count in tokens], **ABOUT)


@pytest.mark.parametrize(
    ("reply", "is_dear"),
    [
        (finished(LOGPROBS), False),
        (finished(LOGPROBS, 1), True),
        (Finished(choices=[], prompt_logprobs=[[ENTRY] * LOGPROBS, [ENTRY]], **ABOUT), True),
        (Embeddings(id=1, vectors=[bytes(VECTORS)], prompt_tokens=1), False),
        (Embeddings(id=1, vectors=[bytes(VECTORS), bytes(4)], prompt_tokens=1), True),
        (Tokens(id=1, token_ids=[1] * (TOKENS + 1), context_length=1), True),
        (TokenCount(id=1, tokens=TOKENS + 1), False),
        (Delta(id=1, tokens=1, logprobs=[ENTRY] * LOGPROBS), False),
        (Delta(id=1, tokens=1, logprobs=[ENTRY], prompt_logprobs=[ENTRY] * LOGPROBS), True),
    ],
)
def test_what_is_dear_to_write_is_written_by_a_thread(reply: Reply, is_dear: bool) -> None:
    def write() -> bytes:
        return b"loop" if threading.current_thread() is threading.main_thread() else b"thread"

    assert asyncio.run(rendered(write, [reply], "a")) == (b"thread" if is_dear else b"loop")


def test_a_list_of_vectors_is_what_its_pieces_say() -> None:
    renderer = EmbeddingRenderer(EmbeddingFields(model="m", input="x"), {})
    vectors = [b"\x00\x00\x80\x3f" * 3, b"\x00\x00\x00\xbf" * 3]
    body = json.loads(renderer.whole(Embeddings(id=1, vectors=vectors, prompt_tokens=7)))
    assert body == {
        "object": "list",
        "model": "m",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0] * 3},
            {"object": "embedding", "index": 1, "embedding": [-0.5] * 3},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
