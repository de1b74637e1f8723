"""Fill in the middle: how models are asked for the text between two others, which their vocabulary tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

PREFIX, SUFFIX = object(), object()
Piece = object | str  # one of these, or a token

FORMATS: tuple[tuple[Piece, ...], ...] = (
    (
        "<|fim_prefix|>",
        PREFIX,
        "<|fim_suffix|>",
        SUFFIX,
        "<|fim_middle|>",
    ),  # Qwen, CodeGemma, Granite 3 and 4
    ("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"),  # StarCoder, Granite Code
    ("<fim-prefix>", PREFIX, "<fim-suffix>", SUFFIX, "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", PREFIX, "▁<SUF>", SUFFIX, "▁<MID>"),  # Code Llama
    ("<|code_prefix|>", PREFIX, "<|code_suffix|>", SUFFIX, "<|code_middle|>"),  # GLM
    ("<[fim-suffix]>", SUFFIX, "<[fim-prefix]>", PREFIX, "<[fim-middle]>"),  # Seed-Coder
    ("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX),  # Codestral
)
# Tokens with which models end what they fill in, beside their own end of text: another file would follow.
ENDS = (
    "<|endoftext|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|file_separator|>",
    "<fim_pad>",
    "<file_sep>",
    "<filename>",
    "▁<EOT>",
)


class Infill(NamedTuple):
    """The format of one model.

    Attributes:
        pieces: ids of its tokens, with `PREFIX` and `SUFFIX` between them.
        ends: ids of tokens that end the answer.
    """

    pieces: tuple[object | int, ...]
    ends: tuple[int, ...]

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The prompt for what stands between the two."""
        ids: list[int] = []
        for piece in self.pieces:
            ids += prefix if piece is PREFIX else suffix if piece is SUFFIX else (piece,)
        return ids


def infill(id_of: Callable[[str], int | None]) -> Infill | None:
    """The format of a model, or None where its vocabulary has none of those that we know.

    Args:
        id_of: the id of a token of the model, None where it has no such token.
    """
    for form in FORMATS:
        marks = {piece: id_of(piece) for piece in form if isinstance(piece, str)}
        if None not in marks.values():
            ends = [number for end in ENDS if (number := id_of(end)) is not None]
            return Infill(tuple(marks.get(piece, piece) for piece in form), (*ends, *marks.values()))
    return None
