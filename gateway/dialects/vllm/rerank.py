"""`POST /rerank`, `/v1/rerank` and `/v2/rerank`: documents in the order in which they answer a query.

One request and one answer for what Cohere, Jina, vLLM and Text Embeddings Inference take. A document that is
longer than the model takes is refused, unless one of them asks for it to be cut: Cohere's
`max_tokens_per_doc`, vLLM's `truncate_prompt_tokens`, or `truncate`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from gateway.dialects import RequestContext
from gateway.dialects.fields import Count, Int, Model, Name, Short, decode, keep_alive, renamed
from gateway.dialects.large import Body, Large, written
from gateway.dialects.openai.embeddings import Limit, UsageOut, cut_to
from gateway.dialects.writing import encode
from ipc.errors import CortexError
from ipc.messages.replies import Ranked
from ipc.messages.requests import Rerank


class Document(Struct):
    text: str


class RerankFields(Struct, kw_only=True):
    model: Model
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    truncate_prompt_tokens: Limit | None = None  # of query and document together
    truncate: bool | None = None
    instruction: Name | None = None  # ours: for models that are told what makes a document a good one
    priority: Int | None = None
    keep_alive: float | Short | None = None  # as Ollama has it
    user: Short | None = None


class Result(Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(Struct):
    id: str
    model: str
    results: Large  # of `Result`
    usage: UsageOut
    meta: dict[str, dict[str, int]]  # where Cohere tells of tokens


_decoder = msgspec.json.Decoder(RerankFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Rerank, RerankRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong; `param` names it.
    """
    fields = decode(_decoder, body)
    texts = [each if isinstance(each, str) else each.text for each in fields.documents]
    rerank = Rerank(
        id=0,
        model=fields.model,
        input=texts,
        query=fields.query,
        document_tokens=fields.max_tokens_per_doc,
        instruction=fields.instruction,
        priority=fields.priority or 0,
        keep_alive=keep_alive(fields.keep_alive),
        cut_to=cut_to(fields.truncate_prompt_tokens, fields.truncate),
    )
    return rerank, RerankRenderer(fields, texts, context.request_id)


class RerankRenderer:
    """Writes the best documents, the best one first; of equal ones the earlier is first."""

    def __init__(self, fields: RerankFields, texts: list[str], request_id: str) -> None:
        self._fields, self._texts, self._id = fields, texts, request_id

    def whole(self, reply: Ranked) -> Body:
        fields, scores = self._fields, reply.scores
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: fields.top_n]
        results = Large(
            encode(
                Result(
                    index, scores[index], Document(self._texts[index]) if fields.return_documents else None
                )
            )
            for index in order
        )
        tokens = reply.prompt_tokens
        meta = {"tokens": {"input_tokens": tokens}}
        return written(Ranking(self._id, fields.model, results, UsageOut(tokens, tokens), meta))

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of the neuron, with the field called as the client calls it."""
        return renamed(error, {"input": "documents"})
