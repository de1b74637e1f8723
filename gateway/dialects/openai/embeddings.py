"""`POST /v1/embeddings`, as OpenAI has it; `pooling` and `normalize` are ours."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.dialects import RequestContext
from gateway.dialects.fields import Count, Int, Name, decode, refuser, renamed
from gateway.dialects.openai.fields import is_one, prompts
from gateway.dialects.writing import encode
from ipc.errors import CortexError
from ipc.messages import Embed, Embeddings

NEUTRAL: dict[str, tuple[Any, ...]] = {"truncate_prompt_tokens": (), "add_special_tokens": (True,)}


class EmbeddingFields(Struct, kw_only=True):
    model: Name
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None
    priority: Int | None = None
    truncate_prompt_tokens: int | None = None  # would change the answer, as the next one
    add_special_tokens: bool | None = None


class Vector(Struct):
    embedding: list[float] | str
    index: int
    object: str = "embedding"


class UsageOut(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    data: list[Vector]
    model: str
    usage: UsageOut
    object: str = "list"


_refuse = refuser(NEUTRAL)
_decoder = msgspec.json.Decoder(EmbeddingFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Embed, EmbeddingRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    _refuse(fields)
    inputs = prompts(fields.input, "input")
    embed = Embed(
        id=0,
        model=fields.model,
        input=[inputs] if is_one(inputs) else inputs,
        pooling=fields.pooling or "last",
        normalize=fields.normalize is not False,
        dimensions=fields.dimensions,
        priority=fields.priority or 0,
    )
    return embed, EmbeddingRenderer(fields, {"input[0]": "input"} if is_one(inputs) else {})


class EmbeddingRenderer:
    """Writes the vectors. `names`: the client's, by the neuron's, of fields where they differ."""

    def __init__(self, fields: EmbeddingFields, names: dict[str, str]) -> None:
        self._names = names
        self._model = fields.model
        self._as_text = fields.encoding_format == "base64"

    def whole(self, reply: Embeddings) -> bytes:
        data = [Vector(self._written(vector), index) for index, vector in enumerate(reply.vectors)]
        usage = UsageOut(reply.prompt_tokens, reply.prompt_tokens)
        return encode(EmbeddingList(data, self._model, usage))

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of the neuron, with the field called as the client calls it."""
        return renamed(error, self._names)

    def _written(self, vector: bytes) -> list[float] | str:
        """float32, little-endian: as text it is what it is."""
        return base64.b64encode(vector).decode() if self._as_text else memoryview(vector).cast("f").tolist()
