"""The Responses API as a dialect: its errors look as OpenAI's do."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseOne, Services
from gateway.dialects.openai.envelope import refuse
from gateway.dialects.openai.responses import compact, input_tokens
from gateway.dialects.openai.responses.background import Background
from gateway.dialects.openai.responses.conversations import (
    ConversationResource,
    ConversationsResource,
    ItemResource,
    ItemsResource,
)
from gateway.dialects.openai.responses.create import CreateResource
from gateway.dialects.openai.responses.resources import CancelResource, InputItemsResource, ResponseResource


class Responses:
    """Responses and conversations."""

    def __init__(self, services: Services) -> None:
        background = Background(services)
        one, several = "/v1/responses/{response_id}", "/v1/conversations/{conversation_id}"
        self.generations: Mapping[str, Parse] = {"/v1/responses/compact": compact.parse_for(services.store)}
        self.replies: Mapping[str, ParseOne] = {
            "/v1/responses/input_tokens": input_tokens.parse_for(services.store)
        }
        self.resources: Mapping[str, object] = {
            "/v1/responses": CreateResource(services, background),
            one: ResponseResource(services, background),
            f"{one}/cancel": CancelResource(services, background),
            f"{one}/input_items": InputItemsResource(services, background),
            "/v1/conversations": ConversationsResource(services),
            several: ConversationResource(services),
            f"{several}/items": ItemsResource(services),
            f"{several}/items/{{item_id}}": ItemResource(services),
        }

    refuse = staticmethod(refuse)
