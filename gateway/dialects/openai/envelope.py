"""Errors as OpenAI writes them: `{"error": {"message", "type", "param", "code"}}`, with our `details`."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.refusals import Refusal


def refuse(refusal: Refusal) -> tuple[int, bytes]:
    """The status and the body of an error."""
    return refusal.status, envelope(refusal)


def envelope(refusal: Refusal) -> bytes:
    """The error as a client reads it, as a body or within a stream."""
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": _type(refusal.status),
        "param": refusal.param,
        "code": refusal.code,
    }
    if refusal.details:
        error["details"] = refusal.details
    return msgspec.json.encode({"error": error})


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
