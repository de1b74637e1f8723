"""Middleware: who sends a request, whether that may ask there, and how much is left of what it may.

Where a gateway says no more than that it is there, nobody needs a key.
"""

from __future__ import annotations

from functools import partial

import falcon.asgi

from gateway.access.keyring import Keyring
from gateway.access.principal import Principal
from gateway.http.browsers import names_loopback
from gateway.http.caller import caller
from gateway.http.limit_headers import limit_headers
from gateway.http.request import Request
from gateway.refusals import FORBIDDEN
from ipc.errors import CortexError

# What proxies say of whom they ask for: one on this host reaches us over loopback, for anybody.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via", "X-Forwarded-Host", "X-Forwarded-Proto")

OPEN = frozenset(("/", "/page.css", "/page.js", "/version", "/ready", "/health", "/openapi.json"))


class Access:
    """Asks the keyring."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def process_request(self, req: Request, resp: falcon.asgi.Response) -> None:
        try:
            principal = await self._keyring.who(_keys(req), partial(caller, req))
        except CortexError:
            if req.path not in OPEN:
                raise
            principal = None
        if principal is not None and principal.admin and not principal.key_id and not _is_of_this_host(req):
            principal.admin = False
        req.context.principal = principal
        if principal is not None and req.path not in OPEN and not principal.may_reach(req.path):
            raise CortexError(FORBIDDEN, f"this key does not allow {req.path}")

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: object, succeeded: bool
    ) -> None:
        principal: Principal | None = getattr(req.context, "principal", None)
        if principal is None or not principal.limits:
            return
        # Clients look at the next limit they meet: the minute's, which comes first, so it is written last.
        for limit in reversed(principal.limits):
            resp.set_headers(limit_headers(limit))


def _keys(req: falcon.asgi.Request) -> list[str]:
    """What a client sends for keys; some send one of each."""
    scheme, _, token = (req.get_header("Authorization") or "").partition(" ")
    keys = [token.strip()] if scheme.lower() == "bearer" and token.strip() else []
    if other := req.get_header("X-API-Key"):
        keys.append(other.strip())
    return keys


def _is_of_this_host(req: Request) -> bool:
    """Whether nothing says that who asks is elsewhere: no proxy, and no name but one of loopback."""
    return names_loopback(req.get_header("Host") or "") and not req.has_any(_FORWARDED)
