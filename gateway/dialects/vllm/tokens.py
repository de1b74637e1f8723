"""`POST /tokenize` and `/detokenize`: vLLM's, with the fields of llama.cpp's, too. No model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gateway.dialects import RequestContext
from gateway.dialects.fields import Model, Name, TokenId, bad_request, decode, refuser, refusing, renamed
from gateway.dialects.large import Body, Large, batches, written
from gateway.dialects.openai.conversation import ContinueFields, Turn, continues, conversation
from gateway.dialects.openai.thinking import ThinkingFields, template_args, thinking
from gateway.dialects.openai.tools import ToolFields, tool_choice
from gateway.dialects.writing import encode
from ipc.errors import Code, CortexError
from ipc.messages.conversation import MAX_TURNS
from ipc.messages.replies import Text, Tokens
from ipc.messages.requests import Detokenize, Tokenize
from ipc.messages.values import MAX_TOKEN_IDS

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "chat_template": (),
    "parse_special": (True,),  # of llama.cpp
}


class ModelField(Struct, kw_only=True):
    model: Model


_refuse = refuser(NEUTRAL)


class TokenizeFields(refusing(ModelField, NEUTRAL, ToolFields, ThinkingFields, ContinueFields), kw_only=True):
    """Of `prompt`, `content`, which is llama.cpp's name for it, and `messages` there is one."""

    prompt: Name | None = None
    content: Name | None = None
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_TURNS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None  # llama.cpp
    return_token_strs: bool | None = None
    with_pieces: bool | None = None  # llama.cpp


class Piece(Struct):
    """A token, as llama.cpp writes it: text that is no UTF-8 by itself as bytes."""

    id: int
    piece: str | list[int]


class TokensOut(Struct):
    count: int
    max_model_len: int
    tokens: Large  # of ids, or of `Piece`
    token_strs: Large | None = None


class DetokenizeFields(Struct, kw_only=True):
    model: Model
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_IDS)]


class TextOut(Struct):
    """Under vLLM's name and llama.cpp's."""

    prompt: str
    content: str


_tokenize = msgspec.json.Decoder(TokenizeFields)
_detokenize = msgspec.json.Decoder(DetokenizeFields)


async def parse_tokenize(body: bytes, context: RequestContext) -> tuple[Tokenize, TokenizeRenderer]:
    """Read a request. Messages become the prompt that a chat completion with the same fields would have.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_tokenize, body)
    _refuse(fields)
    given = [name for name in ("messages", "prompt", "content") if getattr(fields, name) is not None]
    if len(given) != 1:
        text = "a request has either a prompt or messages"
        raise CortexError(Code.BAD_REQUEST, text, param=given[1] if given else "prompt")
    tools = tool_choice(fields)
    if fields.messages is None and tools.tools:
        raise bad_request("tools", "need messages")
    special = fields.add_special if fields.add_special_tokens is None else fields.add_special_tokens
    is_continued, continued_names = continues(fields, fields.messages or [])
    tokenize = Tokenize(
        id=0,
        model=fields.model,
        messages=None if fields.messages is None else conversation(fields.messages),
        prompt=fields.content if fields.prompt is None else fields.prompt,
        tools=tools.tools,
        template_args=template_args(fields.chat_template_kwargs),
        thinking=thinking(fields),
        continue_final_message=is_continued,
        add_special_tokens=special,
        return_bytes=bool(fields.return_token_strs or fields.with_pieces),
    )
    names = {"prompt": given[0], "template_args": "chat_template_kwargs"} | continued_names
    if tools.is_old:
        names["tools"] = "functions"
    return tokenize, TokenizeRenderer(fields, names)


async def parse_detokenize(body: bytes, context: RequestContext) -> tuple[Detokenize, DetokenizeRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong; `param` names it.
    """
    fields = decode(_detokenize, body)
    return Detokenize(id=0, model=fields.model, token_ids=fields.tokens), DetokenizeRenderer()


class TokenizeRenderer:
    """Writes the tokens. `names`: the client's, by the neuron's, of fields where they differ."""

    def __init__(self, fields: TokenizeFields, names: dict[str, str]) -> None:
        self._fields, self._names = fields, names

    def whole(self, reply: Tokens) -> Body:
        ids, texts = reply.token_ids, reply.pieces or []
        strings = None
        if self._fields.return_token_strs:
            strings = Large(batches(token.decode(errors="replace") for token in texts))
        tokens: Iterable[object] = ids
        if self._fields.with_pieces:
            tokens = (Piece(*each) for each in zip(ids, map(_piece, texts), strict=True))
        return written(TokensOut(len(ids), reply.context_length, Large(batches(tokens)), strings))

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of the neuron, with the field called as the client calls it."""
        return renamed(error, self._names)


class DetokenizeRenderer:
    """Writes the text."""

    def whole(self, reply: Text) -> bytes:
        return encode(TextOut(reply.text, reply.text))

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of the neuron, with the field called as the client calls it."""
        return renamed(error, {"token_ids": "tokens"})


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
