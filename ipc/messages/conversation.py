"""A conversation, as a request has it: its turns, what stands in them, and the tools of the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from ipc.messages.values import MAX_NAME, Name, Plain

MAX_IMAGE = 32 << 20  # bytes of an image's file
MAX_TURNS = 10_000
MAX_TOOLS = 1024
MAX_PARTS = 10_000  # of a turn, as dialects take them


class ToolCall(Plain):
    """A finished call of a tool. `arguments` is JSON text, exactly as the model wrote it."""

    id: Name
    name: Name
    arguments: str


class Tool(Plain):
    """A function the model may call.

    `definition` is the client's own JSON, key by key, in the shape that chat templates are written for:
    `{"type": "function", "function": {"name": ..., "description": ..., "parameters": {a JSON schema}, ...}}`.
    """

    definition: dict[str, Any]
    # Lark, as in `Structured`, of a tool whose one argument is a text: calls are held to it as to a schema.
    text_grammar: str | None = None

    @classmethod
    def function(cls, name: str, text_grammar: str | None = None, **more: Any) -> Tool:
        """The tool of that name; `more` are further members of `function`, such as `parameters`."""
        return cls(
            definition={"type": "function", "function": {"name": name, **more}}, text_grammar=text_grammar
        )

    @property
    def name(self) -> str:
        return self.definition["function"]["name"]

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of its arguments; empty where the client gave none."""
        return self.definition["function"].get("parameters") or {}

    def is_valid(self) -> bool:
        """Whether the definition has a name, and what else is read of it has the right type."""
        function = self.definition.get("function")
        if not isinstance(function, dict):
            return False
        name, parameters = function.get("name"), function.get("parameters")
        return isinstance(name, str) and 0 < len(name) <= MAX_NAME and isinstance(parameters, dict | None)


class TextPart(Plain, tag_field="type", tag="text"):
    text: str


class ImagePart(Plain, tag_field="type", tag="image"):
    data: Annotated[bytes, Meta(max_length=MAX_IMAGE)]  # the file
    media_type: Name = ""  # as the client says, such as image/png


class ToolResultPart(Plain, tag_field="type", tag="tool_result"):
    """What a call came to; several may stand in one turn of the user."""

    tool_call_id: Name
    content: str | list[TextPart | ImagePart] = ""
    is_error: bool = False


class ThinkingPart(Plain, tag_field="type", tag="thinking"):
    """A thought of the assistant, between its other parts."""

    text: str


ContentPart = TextPart | ImagePart | ToolResultPart | ThinkingPart


class Message(Plain):
    """One turn of a conversation. Parts are what the client sent, in its order."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] = ""
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: Name | None = None
    name: Name | None = None


Turns = Annotated[list[Message], Meta(max_length=MAX_TURNS)]
Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
