"""Tags that models write into their text, and how much of a text is surely before the next one."""

from __future__ import annotations

SPACE = " \t\r\n"  # between a tag and what is around it, this belongs to the tag

# Stands before a tag that came as a token of its own. No text has such a character: it is half of one.
TOKEN = "\udc00"

THINK, END_THINK = "<think>", "</think>"


def outside(tag: str, text: str) -> int:
    """Characters at the start of `text` that stay outside of `tag`, however the text goes on.

    The rest may be the beginning of the tag. `tag` begins with the only "<" it has.
    """
    start = text.rfind("<", max(0, len(text) - len(tag) + 1))
    return start if start >= 0 and tag.startswith(text[start:]) else len(text)


def before(tag: str, text: str) -> int:
    """The same, where the space before the tag belongs to it."""
    return len(text[: outside(tag, text)].rstrip(SPACE))
