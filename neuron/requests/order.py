"""The order in which the parts of an answer come: streamed, and of a whole one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from ipc.messages.answers import Span, ToolCallDelta
from neuron.text.parser import Piece

_PLACES = {"reasoning": 0, "text": 1, "tool": 2}  # in a delta


@dataclass(slots=True)
class Stretch:
    """As much of an answer as one delta holds: a thought, then text, then calls."""

    text: str = ""
    reasoning: str = ""
    tools: list[ToolCallDelta] = field(default_factory=list)


def stretches(pieces: Sequence[Piece]) -> list[Stretch]:
    """Pieces in as few stretches as keep their order; one that is empty where there are none."""
    if len(pieces) == 1 and pieces[0][0] == "text":
        return [Stretch(pieces[0][1])]
    found, place = [Stretch()], 0
    for kind, piece in pieces:
        if _PLACES[kind] < place:
            found.append(Stretch())
        place = _PLACES[kind]
        if kind == "text":
            found[-1].text += piece
        elif kind == "reasoning":
            found[-1].reasoning += piece
        else:
            found[-1].tools.append(piece)
    return found


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same in as few pieces as there can be."""
    found: list[Piece] = []
    for (kind, _), group in groupby(pieces, _belongs):
        said: list[Any] = [each for _, each in group]
        if kind == "tool":
            arguments = "".join(each.arguments for each in said)
            found.append((kind, msgspec.structs.replace(said[0], arguments=arguments)))
        else:
            found.append((kind, "".join(said)))
    return found


def _belongs(piece: Piece) -> tuple[str, int]:
    kind, said = piece
    return kind, said.index if kind == "tool" else 0


class Spans:
    """Collects the spans of one answer."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._early = 0  # tokens that nothing came of yet

    def add(self, pieces: Sequence[Piece], tokens: int) -> None:
        """Take what came of so many tokens. They count for its first piece, as nobody can tell better."""
        tokens, self._early = tokens + self._early, 0
        for kind, piece in pieces:
            if kind != "tool":
                self._grow(kind, len(piece), tokens)
            elif piece.call_id is not None:
                self._spans.append(Span(kind="call", tokens=tokens))
            else:
                self._grow("call", 0, tokens)
            tokens = 0
        self._early = tokens

    def _grow(self, kind: str, length: int, tokens: int) -> None:
        last = self._spans[-1] if self._spans else None
        if last is None or last.kind != kind:
            self._spans.append(Span(kind=kind, length=length, tokens=tokens))
        else:
            self._spans[-1] = Span(kind=kind, length=last.length + length, tokens=last.tokens + tokens)

    def told(self) -> list[Span]:
        """All of them; none where they are in the order that a delta has, with no token but the text's."""
        if not self._spans or (len(self._spans) == 1 and self._spans[0].kind == "text"):
            return []
        kinds = [span.kind for span in self._spans]
        usual = ["reasoning"] * ("reasoning" in kinds) + ["text"] * ("text" in kinds)
        is_usual = kinds == usual + ["call"] * kinds.count("call")
        elsewhere = any(span.tokens for span in self._spans if span.kind != "text")
        return [] if is_usual and not elsewhere else self._spans
