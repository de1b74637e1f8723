"""`POST /v1/embeddings`, as OpenAI has it, with vLLM's `truncate_prompt_tokens` and the `truncate` and
`prompt_name` of Text Embeddings Inference; `pooling` and `normalize` are ours."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.dialects import RequestContext
from gateway.dialects.fields import (
    Count,
    Int,
    Model,
    Short,
    ShortName,
    bad_request,
    decode,
    keep_alive,
    renamed,
    unsupported,
)
from gateway.dialects.large import Body, Large, written
from gateway.dialects.openai.fields import is_one, prompts
from gateway.dialects.writing import encode
from ipc.errors import CortexError
from ipc.messages.replies import Embeddings
from ipc.messages.requests import Embed
from ipc.messages.values import MAX_TOKEN_IDS

Limit = Annotated[int, Meta(ge=-1, le=MAX_TOKEN_IDS)]


class EmbeddingFields(Struct, kw_only=True):
    model: Model
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None
    priority: Int | None = None
    keep_alive: float | Short | None = None  # as Ollama has it
    prompt_name: ShortName | None = None
    truncate_prompt_tokens: Limit | None = None
    truncate: bool | None = None
    add_special_tokens: bool | None = None  # would change the answer


class Vector(Struct):
    embedding: list[float] | str
    index: int
    object: str = "embedding"


class UsageOut(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    data: Large  # of `Vector`
    model: str
    usage: UsageOut
    object: str = "list"


_decoder = msgspec.json.Decoder(EmbeddingFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Embed, EmbeddingRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    if fields.add_special_tokens is False:
        raise unsupported("add_special_tokens", "false is not supported; token ids are taken as they are")
    inputs = prompts(fields.input, "input")
    embed = Embed(
        id=0,
        model=fields.model,
        input=[inputs] if is_one(inputs) else inputs,
        pooling=fields.pooling or "",
        normalize=fields.normalize,
        dimensions=fields.dimensions,
        priority=fields.priority or 0,
        keep_alive=keep_alive(fields.keep_alive),
        prompt_name=fields.prompt_name,
        cut_to=cut_to(fields.truncate_prompt_tokens, fields.truncate),
    )
    return embed, EmbeddingRenderer(fields, {"input[0]": "input"} if is_one(inputs) else {})


def cut_to(tokens: int | None, truncate: bool | None) -> int | None:
    """Tokens of an input, as `Embed.cut_to` has them.

    Args:
        tokens: vLLM's way of saying it; -1: as many as the model takes.
        truncate: the same, as -1 or not at all.
    """
    if tokens == 0:
        raise bad_request("truncate_prompt_tokens", "is 0: an input without tokens has no vector")
    if tokens is not None:
        return max(tokens, 0)
    return 0 if truncate else None


class EmbeddingRenderer:
    """Writes the vectors. `names`: the client's, by the neuron's, of fields where they differ."""

    def __init__(self, fields: EmbeddingFields, names: dict[str, str]) -> None:
        self._names = names
        self._model = fields.model
        self._as_text = fields.encoding_format == "base64"

    def whole(self, reply: Embeddings) -> Body:
        usage = UsageOut(reply.prompt_tokens, reply.prompt_tokens)
        # Each by itself: between two of them other threads have their turn.
        vectors = (encode(Vector(self._written(vector), index)) for index, vector in enumerate(reply.vectors))
        return written(EmbeddingList(Large(vectors), self._model, usage))

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of the neuron, with the field called as the client calls it."""
        return renamed(error, self._names)

    def _written(self, vector: bytes) -> list[float] | str:
        """float32, little-endian: as text it is what it is."""
        return base64.b64encode(vector).decode() if self._as_text else memoryview(vector).cast("f").tolist()
