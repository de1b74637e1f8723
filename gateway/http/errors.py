"""The one place where errors become answers: each in the words of the dialect that the client speaks."""

from __future__ import annotations

import logging
from collections.abc import Container
from functools import partial
from typing import Any

import falcon
import falcon.asgi

from gateway.fleet.exchange import EXCHANGE
from gateway.http.connections import CUT
from gateway.refusals import BUG, Refusal, log_refusal, shown, unwind
from ipc.errors import Code, CortexError

LONGEST_RETRY = 120  # seconds, after which no client should try again by itself

logger = logging.getLogger("gateway.http.errors")


def write(refusal: Refusal, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
    """Answer with `refusal`, saying whether and when trying again makes sense; and note why."""
    _note(refusal, req)
    resp.status, resp.data = req.context.refuse(refusal, req)
    resp.content_type = "application/json"
    if refusal.status == 401:
        resp.set_header("WWW-Authenticate", "Bearer")
    if refusal.retry_after is not None:
        resp.set_header("Retry-After", str(refusal.retry_after))
        if refusal.retry_after > LONGEST_RETRY:
            resp.set_header("x-should-retry", "false")  # as when a day's limit is reached
    elif refusal.status >= 500:
        resp.set_header("x-should-retry", "false")  # or the SDKs send it twice more


def _note(refusal: Refusal, req: falcon.asgi.Request) -> None:
    reason = f"{refusal.code}: {refusal.message}"
    if req.scope.get(CUT) is not None:  # its connection has told the client, and the log
        return
    if (exchange := req.scope.get(EXCHANGE)) is not None:
        exchange.receipt.on_refused(reason)  # it says so at its end
        return
    log_refusal(refusal, req.context.request_id, req.method, req.path)


async def _on_cortex_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: CortexError, params: dict[str, Any]
) -> None:
    write(Refusal.of(error, req.context.request_id), req, resp)
    unwind(error)


def _meant(path: str, paths: Container[str]) -> str | None:
    """The address that a client meant whose base URL has `/v1` twice or not, or something before it."""
    meant = "/v1/" + path.rpartition("/v1/")[2].lstrip("/")
    return meant if meant in paths else None


async def _on_http_error(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: falcon.HTTPError,
    params: dict[str, Any],
    paths: Container[str],
) -> None:
    message = error.description or f"{req.method} {shown(req.path)}: {error.title}"
    if isinstance(error, falcon.HTTPRouteNotFound) and (meant := _meant(req.path, paths)) is not None:
        message += f"; there is {meant}: is the base URL right that the client was given?"
    headers = dict(error.headers or {})
    refusal = Refusal.of_http(error.status_code, message, req.context.request_id)
    if (wait := headers.pop("Retry-After", None)) is not None:
        refusal = refusal._replace(retry_after=int(wait))
    write(refusal, req, resp)
    for name, value in headers.items():
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
    await _on_cortex_error(req, resp, CortexError(Code.INTERNAL, BUG), params)


def install(app: falcon.asgi.App, paths: Container[str]) -> None:
    """Have every error that a responder raises answered. `paths`: at which somebody answers."""
    app.add_error_handler(Exception, _on_bug)
    app.add_error_handler(falcon.HTTPError, partial(_on_http_error, paths=paths))
    app.add_error_handler(CortexError, _on_cortex_error)
