"""What all tags that models write into their text have in common."""

from __future__ import annotations

SPACE = " \t\r\n"  # between a tag and what is around it, this belongs to the tag

# Stands before a tag that came as a token of its own. No text has such a character: it is half of one.
TOKEN = "\udc00"
