"""What can be done at which address, for the OpenAPI document. `gateway.http.openapi` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from gateway.dialects.admin.fields import (
    LoadFields,
    LogsFields,
    ModelFields,
    NeuronFields,
    PinFields,
    UnloadFields,
)
from gateway.dialects.anthropic.conversation import PromptFields
from gateway.dialects.anthropic.messages import MessageFields
from gateway.dialects.openai import chat_answer, completions
from gateway.dialects.openai.chat import ChatFields
from gateway.dialects.openai.embeddings import EmbeddingFields
from gateway.dialects.openai.responses.conversations import ChangedConversation, MoreItems, NewConversation
from gateway.dialects.openai.responses.fields import ContextFields, CreateFields
from gateway.dialects.vllm.rerank import RerankFields
from gateway.dialects.vllm.tokens import DetokenizeFields, TextOut, TokenizeFields

Schema = dict[str, Any]  # of JSON

JSON = "application/json"

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_PAGE: Schema = {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
_FLAG: Schema = {"type": "boolean"}
_ORDER: Schema = {"enum": ["asc", "desc"]}


def having(**members: Schema) -> Schema:
    """An object with these members, and more."""
    return {"type": "object", "properties": members, "required": list(members)}


def _list(item: Schema, **members: Schema) -> Schema:
    return having(data={"type": "array", "items": item}, **members)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address.

    Attributes:
        answer: what stands in the body of a 200: a struct, or a schema.
        body: what its own body is read as; None: it has none.
        query: parameters of the address, all of them optional.
        streamed: whether `stream` has the answer come in server-sent events.
        anthropics: whether its errors are Anthropic's; None: those of whoever sends `anthropic-version` are.
        statuses: with which it may answer besides, with no error.
        media: types of the answer, besides event streams; what is not JSON is a text.
    """

    method: str
    path: str
    summary: str
    answer: type[Struct] | Schema
    body: type[Struct] | None = None
    query: tuple[tuple[str, Schema], ...] = ()
    streamed: bool = False
    anthropics: bool | None = False
    statuses: tuple[int, ...] = ()
    media: tuple[str, ...] = (JSON,)


MODEL = having(id=_TEXT)
RESPONSE = having(id=_TEXT, object={"const": "response"}, status=_TEXT, output={"type": "array"}, model=_TEXT)
DELETED = having(id=_TEXT, deleted={"const": True})
CONVERSATION = having(id=_TEXT, object={"const": "conversation"}, created_at=_COUNT)
ITEMS = _list({"type": "object"}, object={"const": "list"}, has_more=_FLAG)
MESSAGE = having(
    id=_TEXT,
    type={"const": "message"},
    role={"const": "assistant"},
    model=_TEXT,
    content={"type": "array"},
    stop_reason=_TEXT,
    usage=having(input_tokens=_COUNT, output_tokens=_COUNT),
)
TOKENS = having(tokens={"type": "array"}, count=_COUNT)
EMBEDDINGS = _list(
    having(
        embedding={"type": ["array", "string"], "items": {"type": "number"}},
        index=_COUNT,
        object={"const": "embedding"},
    ),
    model=_TEXT,
    usage=having(prompt_tokens=_COUNT, total_tokens=_COUNT),
    object={"const": "list"},
)
RANKED = having(results={"type": "array"})
PAGED = (("limit", _PAGE), ("order", _ORDER), ("after", _TEXT))

CHANGED = having(neurons={"type": "array"})

OPERATIONS = (
    Operation(
        "post", "/v1/chat/completions", "Answer a conversation", chat_answer.Completion, ChatFields, (), True
    ),
    Operation(
        "post",
        "/v1/completions",
        "Continue texts",
        completions.Completion,
        completions.CompletionFields,
        (),
        True,
    ),
    Operation("post", "/v1/embeddings", "Turn texts into vectors", EMBEDDINGS, EmbeddingFields),
    Operation("post", "/v1/responses", "Make a response", RESPONSE, CreateFields, (), True),
    Operation("post", "/v1/responses/compact", "Make a conversation shorter", having(), ContextFields),
    Operation(
        "post",
        "/v1/responses/input_tokens",
        "Count the tokens that a response would read",
        having(input_tokens=_COUNT),
        CreateFields,
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}",
        "Read a response that is kept",
        RESPONSE,
        query=(("stream", _FLAG), ("starting_after", _COUNT)),
        streamed=True,
    ),
    Operation("delete", "/v1/responses/{response_id}", "Forget a response", DELETED),
    Operation("post", "/v1/responses/{response_id}/cancel", "End a response in the background", RESPONSE),
    Operation(
        "get", "/v1/responses/{response_id}/input_items", "Read what a response was asked", ITEMS, query=PAGED
    ),
    Operation("post", "/v1/conversations", "Begin a conversation", CONVERSATION, NewConversation),
    Operation("get", "/v1/conversations/{conversation_id}", "Read of a conversation", CONVERSATION),
    Operation(
        "post",
        "/v1/conversations/{conversation_id}",
        "Change what is noted of a conversation",
        CONVERSATION,
        ChangedConversation,
    ),
    Operation("delete", "/v1/conversations/{conversation_id}", "Forget a conversation", DELETED),
    Operation("get", "/v1/conversations/{conversation_id}/items", "Read a conversation", ITEMS, query=PAGED),
    Operation("post", "/v1/conversations/{conversation_id}/items", "Add to a conversation", ITEMS, MoreItems),
    Operation(
        "get", "/v1/conversations/{conversation_id}/items/{item_id}", "Read one item", having(id=_TEXT)
    ),
    Operation(
        "delete", "/v1/conversations/{conversation_id}/items/{item_id}", "Forget one item", CONVERSATION
    ),
    *(
        operation
        for base in ("/v1", "/v1/v1")
        for operation in (
            Operation(
                "post", f"{base}/messages", "Answer a conversation", MESSAGE, MessageFields, (), True, True
            ),
            Operation(
                "post",
                f"{base}/messages/count_tokens",
                "Count the tokens of a conversation",
                having(input_tokens=_COUNT),
                PromptFields,
                anthropics=True,
            ),
        )
    ),
    Operation("post", "/tokenize", "Turn a text, or a conversation, into tokens", TOKENS, TokenizeFields),
    Operation("post", "/detokenize", "Turn tokens into a text", TextOut, DetokenizeFields),
    *(
        Operation("post", path, "Order documents by what they say to a query", RANKED, RerankFields)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    Operation(
        "get",
        "/v1/models",
        "List models, in the shape of OpenAI, or with anthropic-version, of Anthropic",
        _list(MODEL),
        query=(
            ("limit", {"type": "integer", "minimum": 1, "maximum": 1000}),
            ("after_id", _TEXT),
            ("before_id", _TEXT),
        ),
        anthropics=None,
    ),
    Operation("get", "/v1/models/{model}", "Tell of a model", MODEL, anthropics=None),
    Operation("post", "/admin/models/load", "Load a model", having(neuron=_TEXT), LoadFields),
    Operation("post", "/admin/models/unload", "Unload a model", CHANGED, UnloadFields),
    Operation("post", "/admin/models/pin", "Keep a model loaded, or no longer", CHANGED, PinFields),
    Operation(
        "post",
        "/admin/models/quote",
        "Say what it would take to serve a model",
        having(quotes={"type": "array"}),
        ModelFields,
    ),
    Operation(
        "post", "/admin/neurons/drain", "Have a neuron take no new work", having(neuron=_TEXT), NeuronFields
    ),
    Operation("post", "/admin/neurons/resume", "Have it take work again", CHANGED, NeuronFields),
    Operation(
        "post", "/admin/logs", "Show what neurons write to their logs", having(neuron=_TEXT), LogsFields
    ),
    Operation("get", "/admin/keys", "List the API keys, without their texts", _list(having(id=_TEXT))),
    Operation(
        "get",
        "/admin/usage",
        "Tell what was used, by key and model",
        _list(having(key=_TEXT, model=_TEXT, requests=_COUNT), since=_TEXT),
        query=(("days", {"type": "integer", "minimum": 1, "maximum": 3660, "default": 30}),),
    ),
    Operation(
        "get",
        "/admin/history",
        "Tell what was counted in each minute of the last hour",
        _list(having(time={"type": "number"}, requests=_COUNT, completion_tokens=_COUNT)),
    ),
    Operation(
        "get",
        "/",
        "Say what runs here; to browsers, the page for people",
        having(version=_TEXT),
        anthropics=None,
        media=(JSON, "text/html"),
    ),
    *(
        Operation("get", path, "A file of that page", _TEXT, anthropics=None, media=(media,))
        for path, media in (("/page.css", "text/css"), ("/page.js", "text/javascript"))
    ),
    Operation("get", "/version", "Say what runs here", having(version=_TEXT), anthropics=None),
    Operation("get", "/health", "Tell all of every neuron", having(status=_TEXT), anthropics=None),
    Operation(
        "get",
        "/ready",
        "Say whether some neuron takes requests",
        having(ready=_FLAG),
        anthropics=None,
        statuses=(503,),
    ),
    Operation("get", "/openapi.json", "This document", having(openapi=_TEXT), anthropics=None),
)
