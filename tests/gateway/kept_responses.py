"""What clients do with responses that are kept, for tests."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import httpx

from tests.gateway.conftest import PATIENCE, GatewayProcess


def api(gateway: GatewayProcess, key: str = "me") -> httpx.Client:
    """A client that may be served by any of the processes: each request is a connection of its own."""
    return httpx.Client(
        base_url=gateway.base,
        trust_env=False,
        timeout=PATIENCE,
        headers={"authorization": f"Bearer {key}", "connection": "close"},
    )


def create(http: httpx.Client, text: Any = "one two", model: str = "echo", **fields: Any) -> dict[str, Any]:
    reply = http.post("/v1/responses", json={"model": model, "input": text} | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def fetch(http: httpx.Client, response_id: str) -> dict[str, Any]:
    reply = http.get(f"/v1/responses/{response_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    return reply.json()["error"]


def all_ids(gateway: GatewayProcess) -> set[str]:
    with contextlib.closing(sqlite3.connect(gateway.config["store"]["path"])) as db:
        if not db.execute("SELECT 1 FROM sqlite_master").fetchone():  # nobody has used it yet
            return set()
        return {row[0] for row in db.execute("SELECT id FROM responses")}
