"""`POST /rerank`, `/v1/rerank` and `/v2/rerank`, as Cohere and Jina have them.

No model that is served here can rank: they continue texts. The request is read as if one could, and refused:
an order that were made of their embeddings would look like an answer and be none.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta, Struct

from gateway.dialects import RequestContext
from gateway.dialects.fields import Count, Name, Short, decode
from gateway.fleet.view import Fleet
from gateway.refusals import shown
from ipc.errors import Code, CortexError


class Document(Struct):
    text: str


class RerankFields(Struct, kw_only=True):
    model: Name
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Count | None = None
    max_tokens_per_doc: Count | None = None  # Cohere
    return_documents: bool | None = None
    user: Short | None = None


_decoder = msgspec.json.Decoder(RerankFields)


class Rerank:
    """Reads requests, and says why there is no answer."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def parse(self, body: bytes, context: RequestContext) -> NoReturn:
        """Refuse a request.

        Raises:
            CortexError: a field is wrong, there is no such model, or there is; `param` names the field.
        """
        fields = decode(_decoder, body)
        await self._fleet.place(self._fleet.resolve(fields.model), needs_load=False)
        raise CortexError(
            Code.NOT_SUPPORTED,
            f"model: {shown(fields.model)} is a language model and cannot rank documents; no model that can "
            "is served here",
            param="model",
        )
