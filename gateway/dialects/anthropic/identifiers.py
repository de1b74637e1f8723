"""Ids of tool calls, which Anthropic's clients know as `toolu_...`, in characters of their own choice.

Models write some ids themselves, with dots and colons, and their templates write them again: what a client
sends back is the id that it was made of.
"""

from __future__ import annotations

import base64
import binascii
import re

_OURS, _THEIRS = "call_", "toolu_"
_ENCODED = "toolu_b64_"
_PLAIN = re.compile(r"call_(?!b64_)[A-Za-z0-9_-]+")


def outward(call_id: str) -> str:
    """The id of a call as the client is told it."""
    if _PLAIN.fullmatch(call_id):
        return _THEIRS + call_id.removeprefix(_OURS)
    return _ENCODED + base64.urlsafe_b64encode(call_id.encode()).decode().rstrip("=")


def inward(tool_use_id: str) -> str:
    """The id of a call that a client names. Two that differ stay two."""
    if tool_use_id.startswith(_ENCODED):
        try:
            encoded = tool_use_id.removeprefix(_ENCODED)
            call_id = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        except (binascii.Error, ValueError):
            return tool_use_id
        return call_id if outward(call_id) == tool_use_id else tool_use_id
    if tool_use_id.startswith(_THEIRS) and _PLAIN.fullmatch(
        plain := _OURS + tool_use_id.removeprefix(_THEIRS)
    ):
        return plain
    return tool_use_id
