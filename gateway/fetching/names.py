"""Looking up names of hosts, in threads that hold up nobody: no request, and not the end of the process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from gateway.fetching.linked import Unfetchable

LOOKUPS = 8  # names that are looked up at once: a name server may be silent for long


class Names:
    """The lookups of one process. One that is given up keeps its place until the resolver is done."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(LOOKUPS)

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host. Unfetchable where it has none."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()

        def settle(answer: Sequence[str] | Unfetchable) -> None:
            self._free.release()
            if found.done():  # it was given up
                return
            if isinstance(answer, Unfetchable):
                found.set_exception(answer)
            else:
                found.set_result(answer)

        def look() -> None:
            answer = _look_up(host, port)
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(settle, answer)

        try:
            # A thread of a pool would be waited for at the end, as long as a name server is silent.
            threading.Thread(target=look, name="names", daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            raise Unfetchable(f"{host} cannot be looked up: {error}") from error
        return await found


def _look_up(host: str, port: int) -> Sequence[str] | Unfetchable:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "that is no name of a host"
        return Unfetchable(f"{host} was not found: {reason}")
    return list(dict.fromkeys(each[4][0] for each in found))
