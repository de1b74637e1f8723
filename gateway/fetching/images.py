"""Images behind addresses, fetched before a request goes to a neuron, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gateway.fetching.linked import Place, Unfetchable, linked
from gateway.fetching.settings import ImageSettings
from ipc.errors import Code, CortexError
from ipc.messages.conversation import ImagePart, Message, TextPart
from ipc.messages.requests import CountTokens, Generate
from ipc.messages.values import MAX_NAME

MAX_LINKS = 100  # different ones of a request
SHARE = 4  # of all connections, one request has so many times fewer
OFF = "nothing is fetched here (images.fetch is false)"

Hold = Callable[[dict[str, Any], int], None]  # told of bytes that a request, of that ASGI scope, will hold


class Images:
    """All that one process fetches.

    Args:
        hold: may refuse, when the process holds too much.
    """

    def __init__(self, settings: ImageSettings, hold: Hold) -> None:
        self._settings, self._hold = settings, hold
        self._fetcher = None
        if settings.fetch:  # httpcore takes a while to import, and is not needed otherwise
            from gateway.fetching.fetcher import Fetcher
            from gateway.fetching.reach import Reach

            reach = Reach(settings.hosts, settings.networks)
            self._fetcher = Fetcher(reach, settings.at_once, settings.cache)

    def check(self, messages: Sequence[Message]) -> None:
        """Raise where an image would have to be fetched, and nothing is: what `fill` would, before."""
        if self._fetcher is None:
            for place in linked(messages):
                _refuse(place, OFF, Code.NOT_SUPPORTED)

    async def fill(
        self, request: Any, scope: dict[str, Any], admit: Callable[[Any], None], account: str
    ) -> None:
        """Put the images themselves into a request, if it is one with messages.

        Args:
            scope: of the request over HTTP.
            admit: told of the request before anything is fetched for it; what it raises, this does.
            account: for whom; what was fetched for one is no other's.

        Raises:
            CortexError: one cannot be had; its `param` is the client's name for the field.
            HTTPServiceUnavailable: the process holds too much already.
        """
        if not isinstance(request, Generate | CountTokens) or request.messages is None:
            return
        places: dict[str, list[Place]] = {}
        for place in linked(request.messages):
            places.setdefault(place.image.url, []).append(place)
            if len(places) > MAX_LINKS:
                raise _error(place, f"a request has images behind {MAX_LINKS} addresses at most")
        if not places:
            return
        if self._fetcher is None:
            for place in (each for of_url in places.values() for each in of_url):
                place.parts[place.index] = _refuse(place, OFF, Code.NOT_SUPPORTED)
            return
        admit(request)
        until = asyncio.get_running_loop().time() + self._settings.seconds
        own = asyncio.Semaphore(max(1, self._settings.at_once // SHARE))
        taken = _Taken(self._settings.limit, lambda size: self._hold(scope, size))
        try:
            async with asyncio.TaskGroup() as group:
                for url, of_url in places.items():
                    group.create_task(self._put(account, url, of_url, until, own, taken))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _put(
        self,
        account: str,
        url: str,
        places: Sequence[Place],
        until: float,
        own: asyncio.Semaphore,
        taken: _Taken,
    ) -> None:
        """Fetch one, and put it where it belongs, each time with all of its bytes."""
        reason = ""
        try:
            async with asyncio.timeout_at(until), own:
                file = await self._fetcher.fetch(account, url, lambda size: taken(size * len(places)))
            if not file.data:
                reason = "it is empty"
        except Unfetchable as error:
            reason = str(error)
        except TimeoutError:
            reason = f"the images of a request have {self._settings.seconds:g} s to come (images.seconds)"
        for place in places:
            place.parts[place.index] = (
                _refuse(place, f"it could not be fetched: {reason}", Code.BAD_REQUEST)
                if reason
                else ImagePart(data=file.data, media_type=file.kind if len(file.kind) <= MAX_NAME else "")
            )


class _Taken:
    """Counts the bytes of a request's images."""

    def __init__(self, limit: int, hold: Callable[[int], None]) -> None:
        self._limit, self._hold, self._left = limit, hold, limit

    def __call__(self, size: int) -> None:
        if size > self._left:
            raise Unfetchable(f"the images of a request may come to {self._limit} bytes (images.limit)")
        self._hold(size)
        self._left -= size


def _refuse(place: Place, reason: str, code: str) -> TextPart:
    """What the model is told of an image that is not to be had; CortexError where that will not do."""
    if place.image.told:
        return TextPart(text=place.image.told)
    raise _error(place, f"{reason}; send the image itself, {place.image.instead}", code)


def _error(place: Place, message: str, code: str = Code.BAD_REQUEST) -> CortexError:
    return CortexError(code, f"{place.image.param}: {message}", param=place.image.param)
