"""The Responses API as a dialect: its errors look as OpenAI's do."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseOne, Services
from gateway.dialects.openai.envelope import envelope
from gateway.dialects.openai.responses.create import CreateResource
from gateway.refusals import Refusal


class Responses:
    """Responses."""

    def __init__(self, services: Services) -> None:
        self.generations: Mapping[str, Parse] = {}
        self.replies: Mapping[str, ParseOne] = {}
        self.resources: Mapping[str, object] = {"/v1/responses": CreateResource(services)}

    @staticmethod
    def refuse(refusal: Refusal) -> tuple[int, bytes]:
        return refusal.status, envelope(refusal)
