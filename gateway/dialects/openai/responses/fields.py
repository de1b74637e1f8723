"""The fields of `POST /v1/responses`.

Hints that leave the answer as it is are taken and ignored, and so are fields that nobody here has heard of.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from gateway.dialects.fields import Count, Int, Model, Short, refuser
from gateway.dialects.openai.fields import LogprobCount
from ipc.messages.conversation import MAX_TURNS

MetadataValue = Annotated[str, Meta(max_length=512)]
MetadataKey = Annotated[str, Meta(max_length=64)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)]

Items = str | Annotated[list[dict[str, Any]], Meta(max_length=MAX_TURNS)]  # text is one message of the user

# Fields that would change the answer and that we refuse, and the values with which they ask for nothing.
refuse = refuser({"prompt": (), "moderation": ()})


class Reasoning(Struct):
    """`generate_summary` is the former name of `summary`."""

    effort: Short | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class Format(Struct):
    """`strict` makes no difference: the schema is honoured, or the request refused."""

    type: Literal["text", "json_object", "json_schema"]
    name: Short | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class Text(Struct):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Struct):
    include_obfuscation: bool | None = None


class ConversationName(Struct):
    id: Short


class NamedTool(Struct):
    """One tool, in `tool_choice` or among its `allowed_tools`."""

    type: str
    name: Short | None = None
    namespace: Short | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[NamedTool] | None = None


class ContextFields(Struct, kw_only=True):
    """What a model is to read: fields that several addresses share."""

    model: Model
    input: Items | None = None
    instructions: str | None = None
    previous_response_id: Short | None = None
    conversation: Short | ConversationName | None = None

    @property
    def conversation_id(self) -> str | None:
        given = self.conversation
        return given.id if isinstance(given, ConversationName) else given


class CreateFields(ContextFields, kw_only=True):
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Count | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    top_logprobs: LogprobCount | None = None
    include: list[Short] | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    prompt_cache_key: Short | None = None
    safety_identifier: Short | None = None
    user: Short | None = None
    service_tier: Short | None = None
    priority: Int | None = None  # as the other addresses have it
    cache_salt: Short | None = None
    keep_alive: float | Short | None = None  # as Ollama has it
    prompt: Any = None
    moderation: Any = None
