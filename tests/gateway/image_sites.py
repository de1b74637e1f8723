"""Hosts that have images, and what becomes of requests that name them."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.dialects.anthropic import messages as anthropic
from gateway.fetching.images import Images
from gateway.fetching.settings import ImageSettings
from ipc.errors import Code, CortexError
from ipc.messages.requests import Generate
from tests.gateway import parsing

HERE = ("127.0.0.0/8", "::1/128")
IMAGE = b"\x89PNG" + bytes(5000)
Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A host on loopback.

    Attributes:
        asked: the heads of all requests, in order.
    """

    def __init__(self, answer: Handler, tls: ssl.SSLContext | None = None) -> None:
        self._answer, self._tls = answer, tls
        self.asked: list[str] = []
        self.open = self.most = 0  # requests
        self.left = asyncio.Event()  # by one who asked

    async def __aenter__(self) -> Site:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.base = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            self.open += 1
            self.most = max(self.most, self.open)
            await self._answer(head.split()[1], writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self.left.set()
            writer.close()


def reply(
    writer: asyncio.StreamWriter,
    body: bytes = b"",
    status: str = "200 OK",
    length: int | None = None,
    **fields: str,
) -> None:
    fields = {
        "content-type": "image/png",
        "content-length": str(len(body) if length is None else length),
    } | fields
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


async def the_image(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, IMAGE)


def admitted(request: object) -> None:
    """By whoever asks."""


def images(**settings: Any) -> Images:
    held = settings.pop("hold", lambda scope, size: None)
    return Images(ImageSettings(**{"fetch": True, "networks": HERE} | settings), held)


def question(*urls: str) -> Generate:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return parsing.chat(messages=[{"role": "user", "content": parts}])


def message(**body: Any) -> Generate:
    """As Anthropic has it."""
    whole = json.dumps({"model": "m", "max_tokens": 5} | body).encode()
    return parsing.parsed(anthropic.parse, whole)[0]


def filled(request: Generate, given: Images) -> list[Any]:
    """The parts of its first message."""

    async def fill() -> None:
        await asyncio.wait_for(given.fill(request, {}, admitted, "somebody"), 30)

    asyncio.run(fill())
    return request.messages[0].content


def fetched(answer: Handler, path: str = "/a", tls: ssl.SSLContext | None = None, **settings: Any) -> Any:
    """The one image of a request, from a site that answers so."""

    async def ask() -> Any:
        async with Site(answer, tls) as site:
            request = question(site.base + path)
            await asyncio.wait_for(images(**settings).fill(request, {}, admitted, "somebody"), 30)
            return request.messages[0].content[0]

    return asyncio.run(ask())


def refused(answer: Handler, path: str = "/a", tls: ssl.SSLContext | None = None, **settings: Any) -> str:
    with pytest.raises(CortexError) as caught:
        fetched(answer, path, tls, **settings)
    error = caught.value
    assert (error.code, error.param) == (Code.BAD_REQUEST, "messages[0].content[0].image_url.url")
    assert error.message.startswith(f"{error.param}: ")
    assert error.message.endswith("; send the image itself, as data:image/...;base64,...")
    return error.message
