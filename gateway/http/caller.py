"""Who asks: neurons let callers take turns, so that one with many requests does not hold up the others."""

from __future__ import annotations

from hashlib import blake2b

import falcon.asgi


def caller(req: falcon.asgi.Request) -> str:
    """A name for whoever sent `req`, the same for the same API key from the same address; no secret in it.

    Keys alone would not do, because where none are needed everybody sends the same one, and addresses alone
    not behind a proxy.
    """
    key = req.get_header("Authorization") or req.get_header("X-API-Key") or ""
    return blake2b(f"{req.remote_addr} {key}".encode(), digest_size=8).hexdigest()
