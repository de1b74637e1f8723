"""Fetching one file over HTTP: a few redirects, each judged like the first address, and so many bytes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from gateway.fetching.hosts import canonical
from gateway.fetching.kept import LISTS, VALIDATORS, File, Kept
from gateway.fetching.linked import Unfetchable
from gateway.fetching.reach import Reach

MAX_URL = 8192  # characters
REDIRECTS = 3
SILENCE_SECONDS = 10.0  # after which a host is given up; the whole has a limit of its own
_SAME = 304  # as what was had before
_MOVED = (301, 302, 303, 307, 308)
_KEPT = "!#$%&'()*+,/:;=?@[]~"  # characters that a URL has as they are; the others are encoded


class Fetcher:
    """Fetches files for one process.

    Args:
        reach: which hosts are asked.
        at_once: connections.
        kept: bytes of files that are kept for when they are asked for again.
    """

    def __init__(self, reach: Reach, at_once: int, kept: int) -> None:
        self._kept = Kept(kept)
        self._reach, self._free = reach, asyncio.Semaphore(at_once)
        self._tls = ssl.create_default_context()

    async def fetch(self, account: str, url: str, take: Callable[[int], None]) -> File:
        """A file, which may be one that the same account had before.

        Args:
            take: told of bytes before they are kept; it may raise `Unfetchable`.

        Raises:
            Unfetchable: with the reason.
        """
        try:
            return await self._follow(account, url, take)
        except httpcore.TimeoutException as error:
            raise Unfetchable(f"its host was silent for {SILENCE_SECONDS:g} s") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
            raise Unfetchable(str(error) or type(error).__name__) from error

    async def _follow(self, account: str, url: str, take: Callable[[int], None]) -> File:
        for _ in range(REDIRECTS + 1):
            target, host = _target(url)
            had = self._kept.find(account, url)
            if had is not None and self._kept.is_fresh(had):
                take(len(had.data))
                return had
            headers = {"Host": host, "User-Agent": "cortex", "Accept": "image/*"}
            headers["Accept-Encoding"] = "identity"
            headers |= had.validators if had is not None else {}
            async with self._free, self._asked(target, headers) as response:
                if response.status not in _MOVED:
                    return await self._file(account, url, response, had, take)
                self._kept.forget(account, url)
                url = _moved(url, response)
        raise Unfetchable(f"it is redirected more than {REDIRECTS} times")

    @asynccontextmanager
    async def _asked(self, target: httpcore.URL, headers: dict[str, str]) -> AsyncIterator[httpcore.Response]:
        """What a host answers, whose body is still to come."""
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        silence = dict.fromkeys(("connect", "read", "write"), SILENCE_SECONDS)
        # Each has connections of its own: a pool for all keeps the place of one that is given up while it
        # waits, and a connection that is kept would have to be judged again.
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._tls, max_keepalive_connections=0, network_backend=self._reach
            ) as pool,
            pool.stream("GET", target, headers=encoded, extensions={"timeout": silence}) as response,
        ):
            yield response

    async def _file(
        self,
        account: str,
        url: str,
        response: httpcore.Response,
        had: File | None,
        take: Callable[[int], None],
    ) -> File:
        """What an answer brings, or what was had where that is the same still."""
        fields: dict[str, str] = {}
        for name, value in ((each.decode("latin-1") for each in pair) for pair in response.headers):
            before = fields.get(name.lower()) if name.lower() in LISTS else None
            fields[name.lower()] = value if before is None else f"{before}, {value}"
        if response.status == _SAME and had is not None:
            take(len(had.data))
            self._kept.keep(account, url, had, _as_answered(had) | fields)
            return had
        self._kept.forget(account, url)
        file = await _read(response, take)
        self._kept.keep(account, url, file, fields)
        return file


def _as_answered(file: File) -> dict[str, str]:
    """The fields of an answer that its validators came with, which one that it is the same may leave out."""
    return {name: file.validators[asked] for name, asked in VALIDATORS.items() if asked in file.validators}


def _target(url: str) -> tuple[httpcore.URL, str]:
    """What to ask for, and the header `Host`."""
    if len(url) > MAX_URL:
        raise Unfetchable(f"an address has at most {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        port, host = parts.port, canonical(parts.hostname) if parts.hostname else ""
    except ValueError as error:
        raise Unfetchable(f"that is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise Unfetchable("an address is http://host/... or https://host/...")
    if parts.username is not None or parts.password is not None:
        raise Unfetchable("an address with a name and a password is not fetched")
    asked = quote(parts.path or "/", safe=_KEPT)
    if parts.query:
        asked += f"?{quote(parts.query, safe=_KEPT)}"
    shown = f"[{host}]" if ":" in host else host
    target = httpcore.URL(scheme=parts.scheme.encode(), host=host.encode(), port=port, target=asked.encode())
    return target, shown if port is None else f"{shown}:{port}"


def _moved(url: str, response: httpcore.Response) -> str:
    """Where a redirect leads."""
    place = _header(response, b"location")
    try:
        moved = urljoin(url, quote(place.encode("latin-1"), safe=_KEPT))
    except ValueError as error:
        raise Unfetchable(f"it is redirected to no address: {error}") from error
    if not place:
        raise Unfetchable("it is redirected to nowhere")
    if url.lower().startswith("https:") and not moved.lower().startswith("https:"):
        raise Unfetchable("it is redirected from https to something else")
    return moved


async def _read(response: httpcore.Response, take: Callable[[int], None]) -> File:
    if response.status != 200:
        raise Unfetchable(f"its host answers with the status {response.status}")
    if (coded := _header(response, b"content-encoding")) not in ("", "identity"):
        raise Unfetchable(f"its host sends it encoded ({coded[:40]!r}), and was asked not to")
    data = bytearray()
    async for chunk in response.aiter_stream():
        take(len(chunk))
        data += chunk
    kind = _header(response, b"content-type").partition(";")[0].strip().lower()
    return File(bytes(data), kind)


def _header(response: httpcore.Response, name: bytes) -> str:
    """A field of an answer; empty where there is none."""
    return next((value for key, value in response.headers if key.lower() == name), b"").decode("latin-1")
