"""The response object: what was asked, as it was understood, and what came of it."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from gateway.dialects.openai.responses.fields import CreateFields
from ipc.errors import Code, CortexError
from ipc.messages.answers import Usage

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

# Codes as clients of this API know them. Codex compacts its turn at the first one, and tries again at
# `server_error`.
_CODES = {
    Code.CONTEXT_LENGTH_EXCEEDED: "context_length_exceeded",
    Code.BAD_REQUEST: "invalid_prompt",
    Code.TEMPLATE_FAILED: "invalid_prompt",
    Code.NOT_SUPPORTED: "invalid_prompt",
    Code.MODEL_NOT_FOUND: "model_not_found",
}


def begun(fields: CreateFields, response_id: str, *, store: bool) -> dict[str, Any]:
    """The object of a response that nothing has come of yet. Every field is there."""
    reasoning, text = fields.reasoning, fields.text
    conversation = fields.conversation_id
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": bool(fields.background),
        "error": None,
        "incomplete_details": None,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": fields.max_tool_calls,
        "model": fields.model,
        "output": [],
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": fields.previous_response_id,
        "conversation": {"id": conversation} if conversation is not None else None,
        "prompt": None,
        "prompt_cache_key": fields.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None,
        },
        "safety_identifier": fields.safety_identifier,
        "service_tier": "default",
        "store": store,
        "temperature": 1.0 if fields.temperature is None else fields.temperature,
        "text": {
            "format": _format(fields),
            "verbosity": (text.verbosity if text is not None else None) or "medium",
        },
        "tool_choice": _tool_choice(fields),
        "tools": [_tool(tool) for tool in fields.tools or ()],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": 1.0 if fields.top_p is None else fields.top_p,
        "presence_penalty": fields.presence_penalty or 0.0,
        "frequency_penalty": fields.frequency_penalty or 0.0,
        "truncation": fields.truncation or "disabled",
        "usage": None,
        "user": fields.user,
        "metadata": fields.metadata or {},
    }


def ended(response: dict[str, Any], status: Status, output: list[dict[str, Any]], usage: Usage) -> None:
    """Note a regular end."""
    response |= {"status": status, "output": output, "usage": usage_out(usage)}
    if status == "completed":
        response["completed_at"] = int(time.time())
    elif status == "incomplete":
        response["incomplete_details"] = {"reason": "max_output_tokens"}


def failed(response: dict[str, Any], output: list[dict[str, Any]], error: CortexError) -> None:
    """Note what ended it."""
    code = _CODES.get(error.code, "server_error")
    response |= {
        "status": "failed",
        "completed_at": None,
        "incomplete_details": None,
        "output": output,
        "error": {"code": code, "message": error.message},
    }


def usage_out(usage: Usage) -> dict[str, Any]:
    """`usage` as this API has it."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _format(fields: CreateFields) -> dict[str, Any]:
    form = fields.text.format if fields.text is not None else None
    if form is None or form.type != "json_schema":
        return {"type": "text" if form is None else form.type}
    return {
        "type": "json_schema",
        "name": form.name,
        "description": form.description,
        "schema": form.schema,
        "strict": True,  # the schema is honoured in any case
    }


def _tool_choice(fields: CreateFields) -> Any:
    choice = fields.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return _given(choice)


def _given(value: Any) -> dict[str, Any]:
    """What the client set of a structure, and no more."""
    return {
        name: [_given(each) for each in item] if isinstance(item, list) else item
        for name, item in msgspec.structs.asdict(value).items()
        if item is not None
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None} | tool
