"""Vectors that come in pieces are those that come in one, whatever the worker did first."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from ipc.messages.replies import Embeddings, VectorPiece
from ipc.messages.requests import Embed
from ipc.worker_messages import Details, SequenceReport
from neuron.preparation.prepared_inputs import PreparedInput, PreparedInputs
from neuron.requests import embedding as embedding_module
from neuron.requests.embedding import Embedding
from tests.neuron.doubles import described

COUNT, SIZE = 50, 16


def replies(in_pieces: bool, order: list[int]) -> list[Any]:
    """Of a request whose inputs are done in this order; the vector of each says its number."""
    found: list[Any] = []
    request = Embed(id=7, model="m", input=["a"] * COUNT, normalize=False, in_pieces=in_pieces)
    opened = Embedding(itertools.count(1), request, found.append, lambda ended: None)
    prepared = PreparedInputs([PreparedInput(bytes(4)) for _ in range(COUNT)], "last")
    opened.accept(prepared, None, described(embedding=True, vector_size=SIZE))
    parts = list(opened.hand_over(10))
    for number in order:
        values = np.full(SIZE, number, "<f4").tobytes()
        report = SequenceReport(parts[number].submit.request_id, [], "stop", Details(embedding=values))
        parts[number].advance(report)
    return found


def vectors_of(found: list[Any]) -> list[bytes]:
    *pieces, last = found
    assert isinstance(last, Embeddings)
    if not pieces:
        return last.vectors
    assert last.vectors == []
    told: dict[int, bytes] = {}
    for piece in pieces:
        assert isinstance(piece, VectorPiece)
        assert len(piece.numbers) == len(piece.vectors)
        assert told.keys().isdisjoint(piece.numbers)
        told |= zip(piece.numbers, piece.vectors, strict=True)
    return [told[number] for number in range(COUNT)]


@pytest.mark.parametrize("seed", [None, 1])
def test_vectors_in_pieces_are_those_of_a_whole_answer(seed: int | None, monkeypatch) -> None:
    order = list(range(COUNT))
    if seed is not None:
        random.Random(seed).shuffle(order)
    assert len(replies(True, order)) == 1  # there are few
    monkeypatch.setattr(embedding_module, "PIECE", 7 * 4 * SIZE)
    [whole], in_pieces = replies(False, order), replies(True, order)
    assert len(in_pieces) > 5
    assert vectors_of(in_pieces) == whole.vectors
    assert [np.frombuffer(vector, "<f4")[0] for vector in whole.vectors] == list(range(COUNT))
