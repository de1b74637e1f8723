"""Falcon's request, with its headers looked up as most are: to find that they are not there."""

from __future__ import annotations

from functools import lru_cache

import falcon.asgi


class Request(falcon.asgi.Request):
    """What a client sends. By itself Falcon raises an exception, and catches it, for each absent header."""

    def get_header(self, name: str, required: bool = False, default: str | None = None) -> str | None:
        """As `falcon.asgi.Request`."""
        value = self._asgi_headers.get(_in_asgi(name))
        if value is not None:
            return value.decode("latin-1")
        return super().get_header(name, required, default) if required else default

    def has_any(self, names: tuple[str, ...]) -> bool:
        """Whether one of these headers is there."""
        return not self._asgi_headers.keys().isdisjoint(_all_in_asgi(names))


@lru_cache(64)  # those that we ask for
def _in_asgi(name: str) -> bytes:
    return name.lower().encode("latin-1")


@lru_cache(8)
def _all_in_asgi(names: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(map(_in_asgi, names))
