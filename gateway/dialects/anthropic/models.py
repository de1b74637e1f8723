"""Models as Anthropic lists them, a page at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.dialects.fields import bad_request
from gateway.fleet.listing import ListedModel
from gateway.refusals import shown

PAGE = 20  # models of a page where the client does not say
LARGEST_PAGE = 1000

_NO = {"supported": False}
_YES = {"supported": True}


def model_list(models: Sequence[ListedModel], param: Callable[[str], str | None]) -> dict[str, Any]:
    """A page of `models`.

    Args:
        param: a parameter of the query, by its name.

    Raises:
        CortexError: `limit` is no number of models, or a cursor is the id of none.
    """
    limit = _limit(param("limit"))
    after, before = param("after_id"), param("before_id")
    if after is not None and before is not None:
        raise bad_request("before_id", "a page begins after one model or ends before one, not both")
    start, end = 0, len(models)
    if after is not None:
        start = _place(models, "after_id", after) + 1
    if before is not None:
        end = _place(models, "before_id", before)
    page = models[max(start, end - limit) : end] if before is not None else models[start : start + limit]
    return {
        "data": [model(each) for each in page],
        "has_more": len(page) < end - start,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }


def model(listed: ListedModel) -> dict[str, Any]:
    """One entry. Where nobody limits `max_tokens`, the context does."""
    context = listed.context_length or None
    limits = [limit for limit in (context, listed.max_output) if limit]
    return {
        "type": "model",
        "id": listed.id,
        "display_name": listed.display_name,
        "created_at": datetime.fromtimestamp(listed.created, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": context,
        "max_tokens": min(limits, default=None),
        "capabilities": _capabilities(listed.capabilities),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
    }


def _capabilities(listed: list[str]) -> dict[str, Any]:
    thinking = _YES if "reasoning" in listed else _NO
    efforts = dict.fromkeys(("low", "medium", "high", "xhigh", "max"), thinking)
    edits = dict.fromkeys(("clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112"), _NO)
    return {
        "batch": _NO,
        "citations": _NO,
        "code_execution": _NO,
        "context_management": _NO | edits,
        "effort": thinking | efforts,
        "image_input": _YES if "vision" in listed else _NO,
        "pdf_input": _NO,
        "server_tools": _NO | {"code_execution": _NO, "web_search": _NO},
        "structured_outputs": _YES,
        "thinking": thinking
        | {"types": dict.fromkeys(("adaptive", "enabled", "between_tools"), thinking) | {"disabled": _YES}},
    }


def _limit(given: str | None) -> int:
    if given is None:
        return PAGE
    if not re.fullmatch(r"[0-9]{1,4}", given) or not 1 <= int(given) <= LARGEST_PAGE:
        raise bad_request("limit", f"expected a number from 1 to {LARGEST_PAGE}, not {shown(given)}")
    return int(given)


def _place(models: Sequence[ListedModel], param: str, id: str) -> int:
    place = next((i for i, each in enumerate(models) if each.id == id), None)
    if place is None:
        raise bad_request(param, f"there is no model {shown(id)}")
    return place
