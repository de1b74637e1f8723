"""The gateway, whose loop tells what its turns take: `gunicorn benchmarks.watched_gateway:app`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import gateway
from tests.held import Held
from tests.neuron.harness import HELD

_app = gateway.app


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same application."""
    if scope["type"] == "lifespan":
        Held(Path(os.environ[HELD])).watch(asyncio.get_running_loop())
    await _app(scope, receive, send)
