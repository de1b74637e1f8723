"""OpenAI's dialect, whole."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseEmbed
from gateway.dialects.openai import chat, completions, embeddings
from gateway.dialects.openai.envelope import envelope
from gateway.refusals import Refusal


class OpenAI:
    """Chat completions, text completions, embeddings."""

    generations: Mapping[str, Parse] = {
        "/v1/chat/completions": chat.parse,
        "/v1/completions": completions.parse,
    }
    embeddings: Mapping[str, ParseEmbed] = {"/v1/embeddings": embeddings.parse}

    def refuse(self, refusal: Refusal) -> tuple[int, bytes]:
        return refusal.status, envelope(refusal)
