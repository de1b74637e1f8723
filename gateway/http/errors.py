"""The one place where errors become HTTP: which status, and what a client reads.

The envelope is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, with `details` (numbers, names)
beside them where there are any.
"""

from __future__ import annotations

import logging
import math
import reprlib
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import msgspec

from ipc.errors import Code, CortexError

logger = logging.getLogger("gateway.http.errors")


class ErrorStatus(NamedTuple):
    """How a code is answered. `retry_after`: seconds, if the neuron gave none; None: no use trying again."""

    status: int
    retry_after: int | None = None


STATUSES: dict[str, ErrorStatus] = {
    Code.BAD_REQUEST: ErrorStatus(400),
    Code.CONTEXT_LENGTH_EXCEEDED: ErrorStatus(400),
    Code.TEMPLATE_FAILED: ErrorStatus(400),
    Code.NOT_SUPPORTED: ErrorStatus(400),
    Code.MODEL_NOT_FOUND: ErrorStatus(404),
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
    Code.UNKNOWN_VERB: ErrorStatus(502),
    Code.BAD_FRAME: ErrorStatus(502),
    Code.PROTOCOL_MISMATCH: ErrorStatus(502),
    Code.DUPLICATE_ID: ErrorStatus(502),
    Code.INTERNAL: ErrorStatus(500),
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

_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict = 1, 4, 4
_brief.maxstring = 100  # room for the id of a model


def shown(value: Any) -> str:
    """A client's value for a message or the log: on one line, and without its middle where it is long."""
    return _brief.repr(value)


def status_of(error: CortexError) -> int:
    """The HTTP status of an error; 500 for a code that a newer neuron may have and we do not."""
    return STATUSES.get(error.code, STATUSES[Code.INTERNAL]).status


def envelope(error: CortexError) -> bytes:
    """The error as a client reads it, as a body or within a stream."""
    return _envelope(status_of(error), error.code, error.message, error.param, error.details)


def refusal(status: int, message: str) -> bytes:
    """What HTTP itself does not allow, as a client reads it."""
    return _envelope(status, HTTP_CODES.get(status, "http_error"), message)


def _envelope(
    status: int, code: str, message: str, param: str | None = None, details: dict[str, Any] | None = None
) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    if details:
        error["details"] = details
    return msgspec.json.encode({"error": error})


def write(error: CortexError, resp: falcon.asgi.Response) -> None:
    """Answer with `error`, saying whether and when trying again makes sense."""
    answer = STATUSES.get(error.code, STATUSES[Code.INTERNAL])
    wait = error.retry_after if error.retry_after is not None else answer.retry_after
    if wait is not None:
        resp.set_header("Retry-After", str(max(1, math.ceil(wait))))
    elif answer.status >= 500:
        resp.set_header("x-should-retry", "false")  # or OpenAI's SDKs send it twice more
    _write(resp, answer.status, envelope(error))


def _write(resp: falcon.asgi.Response, status: int, body: bytes) -> None:
    resp.status = status
    resp.content_type = "application/json"
    resp.data = body


async def _on_cortex_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: CortexError, params: dict[str, Any]
) -> None:
    write(error, resp)


async def _on_http_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, params: dict[str, Any]
) -> None:
    status = error.status_code
    message = error.description or f"{req.method} {shown(req.path)}: {error.title}"
    _write(resp, status, refusal(status, message))
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)


async def _on_bug(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
) -> None:
    logger.error(
        "request failed method=%s path=%s request_id=%s",
        req.method,
        shown(req.path),
        req.context.request_id,
        exc_info=error,
    )
    write(CortexError(Code.INTERNAL, "the gateway failed; its log says more under the request id"), resp)


def install(app: falcon.asgi.App) -> None:
    """Have every error that a responder raises answered in the envelope."""
    app.add_error_handler(Exception, _on_bug)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(CortexError, _on_cortex_error)
