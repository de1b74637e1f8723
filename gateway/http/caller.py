"""Who asks, and in which conversation: neurons let callers take turns, so that one with many requests does
not hold up the others, and a conversation goes on where its beginning is held.
"""

from __future__ import annotations

from hashlib import blake2b

import falcon.asgi

from gateway.http.request import Request

# As Claude Code calls it; then Codex; then OpenCode. What a subagent says is a conversation of its own.
_SESSIONS = ("x-claude-code-session-id", "session-id", "x-session-id", "x-session-affinity")
_AGENT = "x-claude-code-agent-id"


def caller(req: falcon.asgi.Request) -> str:
    """A name for whoever sent `req`, the same for the same API key from the same address; no secret in it.

    Keys alone would not do, because where none are needed everybody sends the same one, and addresses alone
    not behind a proxy.
    """
    key = req.get_header("Authorization") or req.get_header("X-API-Key") or ""
    return blake2b(f"{req.remote_addr} {key}".encode(), digest_size=8).hexdigest()


def session(req: Request) -> str:
    """What its client calls the conversation that `req` belongs to; "" where it does not say."""
    if not req.has_any(_SESSIONS):  # as most
        return ""
    for header in _SESSIONS:
        if name := req.get_header(header):
            return f"{name}\0{req.get_header(_AGENT) or ''}"
    return ""
