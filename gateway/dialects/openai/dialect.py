"""OpenAI's dialect, whole."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseOne, Services
from gateway.dialects.openai import chat, completions, embeddings
from gateway.dialects.openai.envelope import refuse


class OpenAI:
    """Chat completions, text completions, embeddings."""

    def __init__(self, services: Services) -> None:
        self.generations: Mapping[str, Parse] = {
            "/v1/chat/completions": chat.parse,
            "/v1/completions": completions.parse,
        }
        self.replies: Mapping[str, ParseOne] = {"/v1/embeddings": embeddings.parse}
        self.resources: Mapping[str, object] = {}

    refuse = staticmethod(refuse)
