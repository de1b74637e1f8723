"""The dialect, whole. Its errors are OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseOne, Services
from gateway.dialects.openai.envelope import refuse
from gateway.dialects.vllm import rerank, tokens


class VLLM:
    """Text to tokens and back, and ranking."""

    def __init__(self, services: Services) -> None:
        self.generations: Mapping[str, Parse] = {}
        self.replies: Mapping[str, ParseOne] = {
            "/tokenize": tokens.parse_tokenize,
            "/detokenize": tokens.parse_detokenize,
            "/rerank": rerank.parse,
            "/v1/rerank": rerank.parse,
            "/v2/rerank": rerank.parse,
        }
        self.resources: Mapping[str, object] = {}

    refuse = staticmethod(refuse)
