"""How much a model thinks, in the ways that clients say it."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from gateway.dialects import free_json
from gateway.dialects.fields import MAX_INT, Short
from ipc.messages.sampling import Thinking

Budget = Annotated[int, Meta(ge=-1, le=MAX_INT)]  # tokens; -1: no limit, as llama.cpp has it


class Reasoning(Struct):
    """As OpenRouter has it. `exclude`: the model thinks, and does not show it."""

    effort: Short | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class Switch(Struct):
    """As GLM, DeepSeek and Kimi have it at home."""

    type: Literal["enabled", "disabled", "adaptive", "auto"] | None = None
    budget_tokens: Budget | None = None


class ThinkingFields(Struct, kw_only=True):
    """The fields of a request."""

    reasoning_effort: Short | None = None  # OpenAI
    reasoning: Reasoning | None = None
    thinking: Switch | bool | None = None
    enable_thinking: bool | None = None  # Qwen
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None  # vLLM
    thinking_budget_tokens: Budget | None = None  # llama.cpp
    include_reasoning: bool | None = None  # vLLM, and OpenRouter before `reasoning`


_asked = attrgetter(*ThinkingFields.__struct_fields__)
_NOTHING = (None,) * len(ThinkingFields.__struct_fields__)


def thinking(fields: ThinkingFields) -> Thinking:
    """What was asked for. A switch says more than an effort or a budget, which clients always send."""
    if _asked(fields) == _NOTHING:
        return Thinking()
    reasoning, switch = fields.reasoning or Reasoning(), fields.thinking
    if isinstance(switch, bool):
        switch = Switch("enabled" if switch else "disabled")
    effort = fields.reasoning_effort or reasoning.effort or None
    budget = _first(
        fields.thinking_budget,
        fields.thinking_token_budget,
        fields.thinking_budget_tokens,
        reasoning.max_tokens,
        switch.budget_tokens if switch is not None else None,
    )
    switched = {"enabled": True, "disabled": False}.get(switch.type) if switch is not None else None
    enabled = _first(fields.enable_thinking, reasoning.enabled, switched)
    if enabled is None and effort is not None:
        enabled = effort != "none"
    if enabled is None and budget is not None:
        enabled = budget != 0
    return Thinking(enabled=enabled, effort=effort, budget=None if budget == -1 else budget)


def is_hidden(fields: ThinkingFields) -> bool:
    """Whether the thought is not to be shown."""
    hidden = fields.reasoning is not None and fields.reasoning.exclude
    return bool(hidden) or fields.include_reasoning is False


def template_args(given: dict[str, Any] | None) -> dict[str, Any]:
    """`chat_template_kwargs`, which count more than what a template is told of thinking.

    Raises:
        CortexError: a message cannot hold them.
    """
    if given:
        free_json.check("chat_template_kwargs", given)
    return given or {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
