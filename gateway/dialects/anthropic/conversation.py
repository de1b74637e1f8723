"""What a request gives a model to read, in `POST /v1/messages` and where its tokens are counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.dialects import free_json
from gateway.dialects.anthropic.blocks import (
    Content,
    Placed,
    assistant_parts,
    system_parts,
    user_parts,
)
from gateway.dialects.anthropic.tools import ToolChoice, ToolField, Tools
from gateway.dialects.fields import MAX_INT, Name, unsupported
from gateway.refusals import shown
from ipc.errors import Code, CortexError
from ipc.messages import (
    MAX_TURNS,
    ContentPart,
    Message,
    Structured,
    TextPart,
    Thinking,
    ToolCall,
    ToolResultPart,
)


class Turn(Struct):
    role: Literal["user", "assistant", "system"]
    content: Content


class ThinkingField(Struct):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=1024, le=MAX_INT)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class PromptFields(Struct, kw_only=True):
    """What both have. Hints that leave the answer as it is (`metadata`, `cache_control`, `service_tier`,
    `context_management`, ...) and fields that nobody here has heard of are ignored: agents send new ones
    every month."""

    model: Name
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: Content | None = None
    tools: list[ToolField] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingField | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # as a beta had it
    mcp_servers: list[Any] | None = None
    container: Any = None
    thread: Any = None


class Conversation:
    """The canonical form of it.

    Attributes:
        continues: whether the answer goes on with the assistant's last turn, as clients have it do that put
            the beginning of the answer there.
        names: what the client calls the fields that a neuron may complain of, where that differs.
    """

    def __init__(self, fields: PromptFields) -> None:
        for name in ("mcp_servers", "container"):
            if getattr(fields, name):
                raise unsupported(name, "there are no servers of Anthropic's here; leave it out")
        if fields.thread:
            # By these details an SDK knows to send whole conversations from now on.
            raise CortexError(
                Code.NOT_SUPPORTED,
                "thread: conversations are not kept here; send all messages",
                param="thread",
                details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
            )
        tools = Tools(fields.tools, fields.tool_choice)
        self.tools, self.must_call, self.parallel = tools.tools, tools.must_call, tools.parallel
        self.messages, places = _messages(fields)
        self.continues = _continues(self.messages[-1])
        self.thinking = _thinking(fields)
        self.structured, form = _structured(fields)
        self.names = places | tools.names | form


# --- turns ------------------------------------------------------------------------------------------------

_BILLING = "x-anthropic-billing-header:"  # differs from one conversation to the next, and means nothing


def _messages(fields: PromptFields) -> tuple[list[Message], dict[str, str]]:
    """The turns, and what the client calls each of them and of their parts."""
    turns: list[tuple[Message, str, list[str]]] = []
    if fields.system is not None:
        system = _without_billing(fields.system)
        if system:
            turns.append(_turn("system", system, "system", "system"))
    for i, turn in enumerate(fields.messages):
        new = _turn(turn.role, turn.content, f"messages[{i}]", f"messages[{i}].content")
        if turns and turn.role == turns[-1][0].role != "system":
            new = _joined(turns.pop(), new)
        turns.append(new)
    if turns[-1][0].role == "assistant" and not (turns[-1][0].content or turns[-1][0].tool_calls):
        turns.pop()  # it says nothing, and nothing of it can be gone on with
    if not turns:
        raise _bad("messages", "nobody says anything")
    if len(turns) > MAX_TURNS:
        raise _bad("messages", f"there are {len(turns)} turns, more than {MAX_TURNS}")
    _see_calls(turns)
    names: dict[str, str] = {}
    for k, (_, place, parts) in enumerate(turns):
        names |= {f"messages[{k}].content[{j}]": name for j, name in enumerate(parts)}
        names[f"messages[{k}]"] = place
    return [message for message, _, _ in turns], names


def _continues(last: Message) -> bool:
    """Whether the last turn is text of the assistant's. A call is not gone on with, nor is a thought."""
    if last.role != "assistant" or last.tool_calls or not last.content:
        return False
    return isinstance(last.content, str) or isinstance(last.content[-1], TextPart)


def _without_billing(system: Content) -> Content:
    """The system prompt without the line that Claude Code begins it with."""
    if isinstance(system, str):
        return system.partition("\n")[2] if system.startswith(_BILLING) else system
    first = system[0] if system else None
    if first is None or first.text is None or not first.text.startswith(_BILLING):
        return system
    rest = first.text.partition("\n")[2]
    return [replace(first, text=rest), *system[1:]] if rest else system[1:]


def _turn(
    role: Literal["user", "assistant", "system"], content: Content, place: str, param: str
) -> tuple[Message, str, list[str]]:
    """A turn, with the client's names for it and for its parts."""
    if isinstance(content, str):
        return Message(role=role, content=content), place, []
    read = {"user": user_parts, "assistant": assistant_parts, "system": system_parts}[role]
    placed: Iterable[Placed] = read(content, param)
    parts: list[ContentPart] = []
    names: list[str] = []
    calls: list[ToolCall] = []
    for part, name in placed:
        if isinstance(part, ToolCall):
            calls.append(part)
        else:
            parts.append(part)
            names.append(name)
    return Message(role=role, content=parts, tool_calls=calls), place, names


def _joined(
    first: tuple[Message, str, list[str]], second: tuple[Message, str, list[str]]
) -> tuple[Message, str, list[str]]:
    """Two turns of one role are one turn."""
    (one, place, names), (two, other, more) = first, second
    parts = [*_parts(one), *_parts(two)]
    names = [*(names or [place] * len(_parts(one))), *(more or [other] * len(_parts(two)))]
    return replace(one, content=parts, tool_calls=one.tool_calls + two.tool_calls), place, names


def _parts(message: Message) -> list[ContentPart]:
    content = message.content
    if isinstance(content, str):
        return [TextPart(text=content)] if content else []
    return content


def _see_calls(turns: list[tuple[Message, str, list[str]]]) -> None:
    """See that each result of a tool is that of a call before it."""
    called: set[str] = set()
    for message, _, names in turns:
        called |= {call.id for call in message.tool_calls}
        if isinstance(message.content, str):
            continue
        for part, name in zip(message.content, names, strict=True):
            if isinstance(part, ToolResultPart) and part.tool_call_id not in called:
                raise _bad(
                    f"{name}.tool_use_id",
                    f"no `tool_use` block before this `tool_result` has the id {shown(part.tool_call_id)}",
                )


# --- how the answer is made -------------------------------------------------------------------------------


def _thinking(fields: PromptFields) -> Thinking:
    """Who does not ask for thoughts gets none."""
    effort = fields.output_config.effort if fields.output_config is not None else None
    asked = fields.thinking
    if asked is None or asked.type == "disabled":
        return Thinking(enabled=False, effort=effort)
    if asked.type == "enabled" and asked.budget_tokens is None:
        raise _bad("thinking.budget_tokens", "a required field is missing")
    budget = asked.budget_tokens if asked.type == "enabled" else None
    return Thinking(enabled=True, effort=effort, budget=budget)


def _structured(fields: PromptFields) -> tuple[Structured | None, dict[str, str]]:
    """The form that the answer must have, and what the client calls it."""
    form, place = fields.output_format, "output_format"
    if fields.output_config is not None and fields.output_config.format is not None:
        form, place = fields.output_config.format, "output_config.format"
    if form is None:
        return None, {}
    free_json.check(f"{place}.schema", form.schema)
    names = {"structured_outputs.json": f"{place}.schema", "structured_outputs": place, "structured": place}
    return Structured(json=form.schema), names


def _bad(param: str, message: str) -> CortexError:
    return CortexError(Code.BAD_REQUEST, f"{param}: {message}", param=param)
