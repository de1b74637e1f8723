"""Images of a request that only their address is there of, until `Images` has fetched them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ipc.messages.conversation import ContentPart, ImagePart, Message, ToolResultPart


class Unfetchable(Exception):
    """Why an image cannot be had: a sentence for the client."""


class LinkedImage(ImagePart, kw_only=True):
    """Stands where the image will. It never leaves the gateway.

    Attributes:
        url: its address, as the client has it.
        param: the field that this is in, as the client calls it.
        instead: what to send in place of the address, for a refusal.
        told: what the model is told where it cannot be had; empty: the request is refused then.
    """

    url: str
    param: str
    instead: str
    told: str = ""


class Place(NamedTuple):
    """Where one stands: number `index` of `parts`."""

    parts: list[ContentPart]
    index: int

    @property
    def image(self) -> LinkedImage:
        return self.parts[self.index]


def linked(messages: Sequence[Message]) -> Iterator[Place]:
    """All of a conversation."""
    for message in messages:
        if not isinstance(message.content, str):
            yield from _among(message.content)


def _among(parts: list[ContentPart]) -> Iterator[Place]:
    for index, part in enumerate(parts):
        if type(part) is LinkedImage:
            yield Place(parts, index)
        elif type(part) is ToolResultPart and not isinstance(part.content, str):
            yield from _among(part.content)
