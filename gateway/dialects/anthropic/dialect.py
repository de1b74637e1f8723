"""Anthropic's dialect, whole."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseOne, Services
from gateway.dialects.anthropic import count_tokens, messages
from gateway.dialects.anthropic.envelope import envelope, status
from gateway.refusals import Refusal

_BASES = ("/v1", "/v1/v1")  # the second is what clients ask for whose base address ends in /v1


class Anthropic:
    """Messages, and the counting of their tokens."""

    def __init__(self, services: Services) -> None:
        self.generations: Mapping[str, Parse] = {f"{base}/messages": messages.parse for base in _BASES}
        self.replies: Mapping[str, ParseOne] = {
            f"{base}/messages/count_tokens": count_tokens.parse for base in _BASES
        }
        self.resources: Mapping[str, object] = {}

    @staticmethod
    def refuse(refusal: Refusal) -> tuple[int, bytes]:
        return status(refusal), envelope(refusal)
