"""gunicorn's asgi worker without a gateway behind it: how fast the HTTP stack is on this machine."""

from __future__ import annotations

from typing import Any

BODY = b'{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"m","choices":[]}'.ljust(400)
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}'.ljust(190) + b"\n\n"
LAST = b'data: {"choices":[],"usage":{"completion_tokens":64}}\n\ndata: [DONE]\n\n'
EVENTS = 64


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers /v1/chat/completions at once, with one body, or with events where the request says "stream"."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    event = await receive()
    stream = b'"stream": true' in event["body"]
    headers = [(b"content-type", b"text/event-stream" if stream else b"application/json")]
    if not stream:
        headers.append((b"content-length", b"%d" % len(BODY)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if stream:
        for _ in range(EVENTS):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": LAST, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": BODY})
