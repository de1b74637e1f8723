"""Pages in browsers: which of them may ask, and how a browser is told so.

A page of anybody's can have the browser on this host, or in this network, send requests here. Three things
stand against that. A page's `Origin` is one that we know; on loopback the `Host` header is a name that nobody
on the internet can own, or a page of theirs would be of our own origin once their name leads here (DNS
rebinding); and a body says that it is JSON (`gateway.http.body`), which a browser sends for a page only
after a preflight.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache

import falcon
import falcon.asgi

from gateway.fetching.hosts import canonical
from gateway.http.limit_headers import header_names
from gateway.refusals import shown

LOOPBACK, ANY = "loopback", "*"  # words for origins, beside these themselves

_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
# What clients read of answers: whose it is, whether and when to try again, what is left, who has it.
_LEFT = [name for what in ("requests", "tokens") for name in header_names(what)]
_READABLE = ", ".join(
    ("x-request-id", "request-id", "retry-after", "x-should-retry", *_LEFT, "x-cortex-placement")
)
_PREFLIGHT_SECONDS = "7200"  # browsers remember an answer no longer

# Nobody can register a name below these: RFC 6761, RFC 6762, and ICANN's resolution of 2024.
_PRIVATE = (".localhost", ".local", ".internal")


class Browsers:
    """Middleware: refuses pages that may not ask, and answers preflights of those that may.

    Args:
        origins: `scheme://host:port` each, `LOOPBACK` or `ANY`.
        hosts: further names that this gateway is reached by.
    """

    def __init__(self, origins: Sequence[str], hosts: Sequence[str]) -> None:
        self._origins = frozenset(origin.lower() for origin in origins)
        self._hosts = frozenset(map(canonical, hosts)) | {socket.gethostname().lower()}

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        host, server = req.get_header("host") or "", req.scope["server"]
        if server is not None and not self.leads_here(host, server[0]):
            raise falcon.HTTPForbidden(
                description=f"host: {shown(_name(host))} is no name of this gateway; "
                "if it is one, add it to gateway.hosts in its configuration"
            )
        origin = req.get_header("origin")
        if origin is None:
            return
        if not self._may_ask(origin.lower(), host.lower()):
            raise falcon.HTTPForbidden(
                description=f"origin: pages of {shown(origin)} may not ask here; "
                "if they should, add it to gateway.cors_origins in the gateway's configuration"
            )
        resp.set_headers(_readable_by(origin))  # errors keep them
        if req.method == "OPTIONS" and (wanted := req.get_header("access-control-request-method")):
            resp.set_header("Access-Control-Allow-Methods", _METHODS if wanted in _METHODS else wanted)
            resp.set_header("Access-Control-Max-Age", _PREFLIGHT_SECONDS)
            if headers := req.get_header("access-control-request-headers"):
                resp.set_header("Access-Control-Allow-Headers", headers)
            if req.get_header("access-control-request-private-network") == "true":
                resp.set_header("Access-Control-Allow-Private-Network", "true")
            resp.status = falcon.HTTP_204
            resp.complete = True

    def of_refusal(self, origin: str | None, host: str | None, server: str) -> list[tuple[str, str]]:
        """Headers by which a page may read why its request was refused before it was read as a whole.

        Args:
            origin: what is known of these two headers; None: it is not there, or did not come that far.
            server: the address at which the request came.
        """
        if host is not None and not self.leads_here(host, server):
            return []
        if origin is None:
            return _readable_by(ANY) if ANY in self._origins else []
        return _readable_by(origin) if self._may_ask(origin.lower(), (host or "").lower()) else []

    def leads_here(self, host: str, server: str) -> bool:
        """Whether a request is meant for us: on loopback its host is a name of ours.

        Args:
            server: the address at which it came.
        """
        return self._is_ours(host) or not is_loopback(server)

    def _is_ours(self, host: str) -> bool:
        return _is_private(host) or _name(host) in self._hosts

    def _may_ask(self, origin: str, host: str) -> bool:
        if origin in self._origins or ANY in self._origins:
            return True
        netloc = origin.partition("://")[2]
        if LOOPBACK in self._origins and names_loopback(netloc):
            return True
        # Our own page. Most names could be anybody's that lead here.
        return netloc == host and self._is_ours(host)


def _readable_by(origin: str) -> list[tuple[str, str]]:
    """Headers that let pages of `origin` have the answer."""
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _READABLE),
        ("Vary", "Origin"),
    ]


def names_loopback(netloc: str) -> bool:
    """Whether `host:port` means this host wherever it is said."""
    name = _name(netloc)
    return name.endswith(".localhost") or is_loopback(name)


def _name(netloc: str) -> str:
    """The host of `host:port`, in small letters."""
    host = netloc if netloc.endswith("]") else netloc.rpartition(":")[0] or netloc
    return host.strip("[]").rstrip(".").lower()


@lru_cache(256)
def _is_private(host: str) -> bool:
    """Whether nobody on the internet can own it: an address, no dots in it, or below a private domain."""
    name = _name(host)
    return "." not in name or name.endswith(_PRIVATE) or _is_address(name)


@lru_cache(256)
def is_loopback(name: str) -> bool:
    """Whether a name or an address is this host's own."""
    if not _is_address(name):
        return name == "localhost"
    address = ipaddress.ip_address(name)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@lru_cache(256)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
