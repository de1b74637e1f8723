"""What whoever runs the fleet may know of its users, and of the last hour."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import falcon.asgi
import msgspec

from gateway.dialects.admin.resources import AdminResource
from gateway.dialects.large import Body, Large, batches, put, written
from gateway.dialects.openai.responses.pages import integer
from gateway.store.key_store import Key

DEFAULT_DAYS, MAX_DAYS = 30, 3660


class KeysResource(AdminResource):
    """`GET /admin/keys`: every key that was made, but nothing that leads to its text."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        self._require_admin(req)
        keys = await self._services.keys.every()
        put(resp, await asyncio.to_thread(lambda: written({"data": Large(batches(map(_shown, keys)))})))


class UsageResource(AdminResource):
    """`GET /admin/usage`: what was used, by key and model, today and on the `days` before it, of UTC."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        self._require_admin(req)
        days = integer(req, "days", DEFAULT_DAYS, lowest=1, highest=MAX_DAYS)
        since = (datetime.now(UTC) - timedelta(days=days - 1)).strftime("%Y-%m-%d")
        rows = await self._services.keys.used(since)

        def report() -> Body:
            return written({"since": since, "data": Large(batches(row._asdict() for row in rows))})

        put(resp, await asyncio.to_thread(report))


class HistoryResource(AdminResource):
    """`GET /admin/history`: what the gateway had counted, each minute of the last hour, and now."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        self._require_admin(req)
        resp.data = msgspec.json.encode({"data": await self._services.history.points()})


def _shown(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "terms": msgspec.to_builtins(key.terms),
    }
