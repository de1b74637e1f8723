"""What values in messages have in common: their base, and names and lists within bounds."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Annotated

import msgspec
from msgspec import Meta

from ipc.model_settings import MAX_MODEL_ID


class Plain(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """A value inside messages."""


def take_word(said: msgspec.Struct, field: str, known: Collection[str], instead: str) -> None:
    """Have a word of a newer neuron, which we cannot know, count as `instead`: it costs no more than that."""
    if getattr(said, field) not in known:
        msgspec.structs.force_setattr(said, field, instead)


MAX_NAME = 256  # characters of a name or an id that a client chooses
MAX_TOKEN_IDS = 1 << 20  # of one list
MAX_FLOAT = sys.float_info.max
MOST_TOKENS = 1 << 40  # of one request

Name = Annotated[str, Meta(max_length=MAX_NAME)]
ModelId = Annotated[str, Meta(max_length=MAX_MODEL_ID)]
Finite = Annotated[float, Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]  # no NaN: JSON has none
Seconds = Finite  # nor in a timer, where it stops the others
Count = Annotated[int, Meta(ge=0)]
TokenTotal = Annotated[int, Meta(ge=0, le=MOST_TOKENS)]  # is counted and charged for
Digest = Annotated[bytes, Meta(min_length=1, max_length=32)]  # of a beginning of a prompt
TokenIds = Annotated[list[int], Meta(max_length=MAX_TOKEN_IDS)]
