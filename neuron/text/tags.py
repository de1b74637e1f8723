"""What all tags that models write into their text have in common."""

from __future__ import annotations

SPACE = " \t\r\n"  # between a tag and what is around it, this belongs to the tag

# Stands before a tag that came as a token of its own. No text has such a character: it is half of one.
TOKEN = "\udc00"


class HeldSpace:
    """Space at the end of text that streams, held back until it is known whether a tag follows.

    A model may write space for ever: what was held is not looked at again.
    """

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def push(self, text: str) -> str:
        """More text: what stands before the space at its end, with the space that was held before that."""
        said = text.rstrip(SPACE)
        before = self.take() if said else ""
        self._pieces.append(text[len(said) :])
        return before + said

    def take(self) -> str:
        """What is held, which is not held any more."""
        space = "".join(self._pieces)
        self._pieces.clear()
        return space
