"""What is left of a limit, in the headers that OpenAI's clients read, and Anthropic's."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from gateway.access.limits import Limit


def limit_headers(limit: Limit) -> Iterable[tuple[str, str]]:
    """Names and values."""
    allowed, left = str(limit.allowed), str(limit.left)
    at = _written(int(time.time() + limit.reset))
    return zip(
        header_names(limit.what), (allowed, left, f"{limit.reset:.0f}s", allowed, left, at), strict=True
    )


@lru_cache(2)
def header_names(what: str) -> tuple[str, ...]:
    """Of a limit of `requests` or `tokens`."""
    parts = ("limit", "remaining", "reset")
    openai = (f"x-ratelimit-{part}-{what}" for part in parts)
    anthropic = (f"anthropic-ratelimit-{what}-{part}" for part in parts)
    return (*openai, *anthropic)


@lru_cache(64)  # limits begin anew with a minute, or a day
def _written(second: int) -> str:
    """A Unix time as clients read it."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
