"""How the page is served: as files that hold nothing of the fleet, and that a browser lets do little."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Protocol

import falcon
import falcon.asgi

STATIC = Path(__file__).parent / "static"

# No code or style but that of these files, nobody else is asked for anything, nobody has it in a frame, and
# no text becomes markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


class Resource(Protocol):
    """What answers who is no browser."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None: ...


class FileResource:
    """One of the page's files, read once. A browser asks each time whether it is another one now."""

    def __init__(self, name: str, media_type: str) -> None:
        self._data = (STATIC / name).read_bytes()
        self._etag = sha256(self._data).hexdigest()[:32]
        self._media_type = media_type

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.set_header("Content-Security-Policy", _POLICY)
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.set_header("Referrer-Policy", "no-referrer")
        resp.set_header("Cache-Control", "no-cache")
        resp.etag = self._etag
        if any(tag in ("*", self._etag) for tag in req.if_none_match or ()):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = f"{self._media_type}; charset=utf-8"
        resp.data = self._data

    on_head = on_get


class PageResource(FileResource):
    """`GET /`: the page for those who would rather have HTML; for all others what `otherwise` says."""

    def __init__(self, otherwise: Resource) -> None:
        super().__init__("index.html", "text/html")
        self._otherwise = otherwise

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.append_header("Vary", "Accept")
        # Programs that take anything, `*/*`, look only whether anybody is there.
        names_it = "text/html" in (req.get_header("Accept") or "").lower()
        if names_it and req.client_prefers(("application/json", "text/html")) == "text/html":
            await super().on_get(req, resp)
        else:
            await self._otherwise.on_get(req, resp)

    on_head = on_get


def resources(otherwise: Resource) -> dict[str, object]:
    """All of the page, by path."""
    return {
        "/": PageResource(otherwise),
        "/page.css": FileResource("page.css", "text/css"),
        "/page.js": FileResource("page.js", "text/javascript"),
    }
