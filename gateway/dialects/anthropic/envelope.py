"""Errors as Anthropic writes them: `{"type": "error", "error": {"type", "message"}, "request_id"}`."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.refusals import Refusal

OVERLOADED = 529  # Anthropic's own: the request is good, and there is no room for it now
_STATUSES = {503: OVERLOADED, 422: 400}  # where Anthropic's differs

# Where a status is not here, what is below 500 is the client's doing.
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
_INDEX = re.compile(r"\[(\d+)\]")


def status(refusal: Refusal) -> int:
    """The status of an error, of those that Anthropic has."""
    return _STATUSES.get(refusal.status, refusal.status)


def envelope(refusal: Refusal) -> bytes:
    """The error as a client reads it, as a body or within a stream.

    There is no member for the field that is wrong: the message begins with it, and indexes in it have dots.
    """
    code = status(refusal)
    message, param = refusal.message, refusal.param or ""
    if param and message.startswith(param):
        message = _INDEX.sub(r".\1", param) + message.removeprefix(param)
    error: dict[str, Any] = {
        "type": _TYPES.get(code, "api_error" if code >= 500 else "invalid_request_error"),
        "message": message,
    }
    if refusal.details:
        error["details"] = refusal.details
    return msgspec.json.encode({"type": "error", "error": error, "request_id": refusal.request_id or None})
