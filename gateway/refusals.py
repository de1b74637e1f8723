"""Errors as HTTP has them, before a dialect puts them in its own words."""

from __future__ import annotations

import logging
import math
import reprlib
from typing import Any, NamedTuple

from ipc.errors import Code, CortexError

logger = logging.getLogger("gateway.refusals")

BUG = "the gateway failed; its log says more under the request id"


class ErrorStatus(NamedTuple):
    """How a code is answered. `retry_after`: seconds, if the neuron gave none; None: no use trying again."""

    status: int
    retry_after: int | None = None


STATUSES: dict[str, ErrorStatus] = {
    Code.BAD_REQUEST: ErrorStatus(400),
    Code.CONTEXT_LENGTH_EXCEEDED: ErrorStatus(400),
    Code.TEMPLATE_FAILED: ErrorStatus(422),
    Code.NOT_SUPPORTED: ErrorStatus(400),
    Code.MODEL_NOT_FOUND: ErrorStatus(404),
    # What no wait mends is no 5xx: clients try those again, whatever headers say.
    Code.MODEL_TOO_LARGE: ErrorStatus(404),
    Code.MODEL_LOAD_FAILED: ErrorStatus(500),
    Code.INSUFFICIENT_MEMORY: ErrorStatus(503, 10),
    # 503, not 429: clients take 429 for a limit of their own, and some do not try again.
    Code.QUEUE_FULL: ErrorStatus(503, 1),
    Code.QUEUE_TIMEOUT: ErrorStatus(503, 5),
    Code.WORKER_DIED: ErrorStatus(503, 2),
    Code.STEP_DEADLINE: ErrorStatus(503, 5),
    Code.DRAINING: ErrorStatus(503, 5),
    Code.SHUTTING_DOWN: ErrorStatus(503, 5),
    Code.NEURON_LOST: ErrorStatus(503, 2),
    Code.MODEL_LOADING: ErrorStatus(503, 10),
    Code.UNKNOWN_VERB: ErrorStatus(502),
    Code.BAD_FRAME: ErrorStatus(502),
    Code.PROTOCOL_MISMATCH: ErrorStatus(502),
    Code.DUPLICATE_ID: ErrorStatus(502),
    Code.INTERNAL: ErrorStatus(500),
}

# What the gateway says of what it keeps, and no neuron does.
NOT_FOUND, STORE_UNAVAILABLE = "not_found", "store_unavailable"
INVALID_KEY, FORBIDDEN, RATE_LIMITED = "invalid_api_key", "forbidden", "rate_limit_exceeded"
STATUSES |= {
    NOT_FOUND: ErrorStatus(404),
    STORE_UNAVAILABLE: ErrorStatus(503),
    INVALID_KEY: ErrorStatus(401),
    FORBIDDEN: ErrorStatus(403),
    RATE_LIMITED: ErrorStatus(429),
}

# What Falcon raises, and we with its classes: errors of HTTP, before any model is asked.
HTTP_CODES = {
    403: "forbidden",
    404: "route_not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    414: "request_line_too_long",
    415: "unsupported_media_type",
    431: "header_too_large",
    503: "gateway_busy",
}


def unwind(error: BaseException | None) -> None:
    """Forget the frames that an error came through: where whoever keeps it stands in one of them, all that a
    request held would stay until the next search for garbage."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class Refusal(NamedTuple):
    """What a client is told instead of an answer, or of the rest of one."""

    status: int
    code: str
    message: str
    param: str | None = None
    details: dict[str, Any] = {}  # numbers and names
    retry_after: int | None = None  # seconds
    request_id: str = ""

    @classmethod
    def of(cls, error: CortexError, request_id: str = "") -> Refusal:
        answer = STATUSES.get(error.code, STATUSES[Code.INTERNAL])
        wait = error.retry_after if error.retry_after is not None else answer.retry_after
        if wait is not None:
            wait = max(1, math.ceil(wait))
        return cls(answer.status, error.code, error.message, error.param, error.details, wait, request_id)

    @classmethod
    def of_http(cls, status: int, message: str, request_id: str = "") -> Refusal:
        """What HTTP itself does not allow."""
        return cls(status, HTTP_CODES.get(status, "http_error"), message, request_id=request_id)


def log_refusal(refusal: Refusal, request_id: str, method: str, path: str) -> None:
    """The line of a request that was refused before any model was asked."""
    logger.info(
        "request refused request_id=%s method=%s path=%s status=%d reason=%s",
        request_id,
        method,
        shown(path),
        refusal.status,
        one_line(f"{refusal.code}: {refusal.message}"),
    )


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict = 1, 4, 4
_brief.maxstring = 100  # room for the id of a model


def shown(value: Any) -> str:
    """A client's value for a message or the log: on one line, and without its middle where it is long."""
    return _brief.repr(value)


def one_line(text: str) -> str:
    """A message as a line of the log has it, whatever a client had written into it."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def status_of(error: CortexError) -> int:
    """The HTTP status of an error; 500 for a code that a newer neuron may have and we do not."""
    return STATUSES.get(error.code, STATUSES[Code.INTERNAL]).status
