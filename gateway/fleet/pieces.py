"""Log-probabilities of an unstreamed answer, and vectors, which come in pieces before its end.

Log-probabilities stay as they came until somebody writes them. Read at once they would be a million objects:
to make them, and to free them, holds up the event loop for a tenth of a second each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from ipc.messages.answers import TokenLogprob
from ipc.messages.replies import Embeddings, Finished, LogprobPiece, VectorPiece

_decode = msgspec.msgpack.Decoder(list[TokenLogprob]).decode


class Entries:
    """Those of one choice or one prompt, in order, read piece by piece each time that one walks through them.

    Args:
        last: that came with the end.
    """

    def __init__(self, pieces: list[LogprobPiece], last: list[TokenLogprob]) -> None:
        self._pieces, self._last = pieces, last
        self._length = sum(piece.tokens for piece in pieces) + len(last)

    def __iter__(self) -> Iterator[TokenLogprob]:
        for piece in self._pieces:
            yield from _decode(piece.entries)
        yield from self._last

    def __len__(self) -> int:
        return self._length


class Pieces:
    """All that came of one request."""

    def __init__(self) -> None:
        self._of_choices: dict[int, list[LogprobPiece]] = defaultdict(list)
        self._of_prompts: dict[int, list[LogprobPiece]] = defaultdict(list)
        self._vectors: dict[int, bytes] = {}  # by the numbers of their inputs

    def take(self, piece: LogprobPiece | VectorPiece) -> None:
        """The next one."""
        if isinstance(piece, VectorPiece):
            self._vectors.update(zip(piece.numbers, piece.vectors, strict=False))  # the end tells what lacks
            return
        (self._of_prompts if piece.of_prompt else self._of_choices)[piece.index].append(piece)

    def join_vectors(self, embeddings: Embeddings) -> Embeddings:
        """The vectors in the order of the input."""
        return replace(embeddings, vectors=[self._vectors[number] for number in sorted(self._vectors)])

    def join(self, finished: Finished) -> Finished:
        """The answer with all that came before its end."""
        choices: list[Any] = [
            replace(choice, logprobs=Entries(self._of_choices[choice.index], choice.logprobs))
            for choice in finished.choices
        ]
        of_prompts: list[Any] | None = finished.prompt_logprobs
        if of_prompts is not None:
            of_prompts = [Entries(self._of_prompts[index], last) for index, last in enumerate(of_prompts)]
        return replace(finished, choices=choices, prompt_logprobs=of_prompts)
