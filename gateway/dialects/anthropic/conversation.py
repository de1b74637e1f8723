"""What a request gives a model to read, in `POST /v1/messages` and where its tokens are counted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from gateway.dialects import free_json
from gateway.dialects.anthropic import turns
from gateway.dialects.anthropic.blocks import Content, tool_changes
from gateway.dialects.anthropic.tools import ToolChoice, ToolField, Tools
from gateway.dialects.anthropic.turns import Effort, TurnField
from gateway.dialects.fields import MAX_INT, MISSING, Model, bad_request, renamed, unsupported
from ipc.errors import Code, CortexError
from ipc.messages.sampling import Structured, Thinking


class ThinkingField(Struct):
    """`between_tools` asks for thoughts about what tools found, and for none before the first call."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: Annotated[int, Meta(ge=1024, le=MAX_INT)] | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Effort | None = None
    format: OutputFormat | None = None


class PromptFields(Struct, kw_only=True):
    """What both have. Hints that leave the answer as it is (`metadata`, `cache_control`, `service_tier`,
    `context_management`, ...) and fields that nobody here has heard of are ignored: agents send new ones
    every month."""

    model: Model
    messages: Annotated[list[TurnField], Meta(min_length=1)]
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
        changes = [
            change
            for i, message in enumerate(fields.messages)
            for change in tool_changes(message.content or (), f"messages[{i}].content")
        ]
        tools = Tools(fields.tools, changes, fields.tool_choice)
        self.tools, self.must_call, self.parallel = tools.tools, tools.must_call, tools.parallel
        self._turns = turns.read(fields.system, fields.messages)
        self.messages = [turn.message() for turn in self._turns]
        last = self._turns[-1]
        self.continues = last.role == "assistant" and last.ends_in_text
        self.thinking = _thinking(fields)
        self.structured, form = _structured(fields)
        self._names = tools.names | form

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of a neuron, with the client's names for fields.

        Agents look for Anthropic's own sentence about a prompt that is too long, and make it shorter.
        """
        error = renamed(error, dict(turns.names(self._turns)) | self._names | _NAMES)
        tokens, most = (error.details.get(name) for name in ("prompt_tokens", "context_length"))
        if error.code == Code.CONTEXT_LENGTH_EXCEEDED and tokens is not None and most is not None:
            error.message = f"prompt is too long: {tokens} tokens > {most} maximum"
        return error


# What a client calls the fields that a neuron may complain of.
_NAMES = {"stop": "stop_sequences", "template_args": "thinking", "continue_final_message": "messages"}


# --- how the answer is made -------------------------------------------------------------------------------


def _thinking(fields: PromptFields) -> Thinking:
    """Who does not ask for thoughts gets none."""
    effort = turns.effort(fields.messages)
    if effort is None and fields.output_config is not None:
        effort = fields.output_config.effort
    asked = fields.thinking
    if asked is None or asked.type == "disabled":
        return Thinking(enabled=False, effort=effort)
    if asked.type == "between_tools" and not turns.ends_in_results(fields.messages):
        return Thinking(enabled=False, effort=effort)
    if asked.type == "enabled" and asked.budget_tokens is None:
        raise bad_request("thinking.budget_tokens", MISSING)
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
