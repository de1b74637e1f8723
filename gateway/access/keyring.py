"""The keys that one process knows: read from the store, and read again within a second of any change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from gateway.access import api_key
from gateway.access.limits import DAY, Limits
from gateway.access.principal import LEFTOVERS, Principal
from gateway.refusals import INVALID_KEY, STORE_UNAVAILABLE, one_line
from gateway.store import key_store
from gateway.store.key_store import Key, KeyStore, UsageRow
from ipc.errors import CortexError
from ipc.messages.answers import Usage

logger = logging.getLogger("gateway.access")

LOOK_SECONDS = 1.0  # between two looks at the store; what was revoked is refused after that
JUMP_SECONDS = 30.0  # of the wall clock beside the monotonic one, from a look to the next: it was set
LAST_SECONDS = 10.0  # that usage waits to be written where the process ends
TURN_SECONDS = 0.5  # that usage waits to be written, and keys meanwhile to be read; later is as good

NO_KEY = (
    "an API key is needed, as `Authorization: Bearer KEY` or as `x-api-key: KEY`; "
    "whoever runs this gateway makes one with `cortex keys create NAME`"
)


class Keyring:
    """Tells who sends a request, and notes what keys are used for.

    Args:
        path: of the store; a file that is not there holds no keys.
        anonymous: whether requests without a key are served.
        local: nobody but this host reaches us, and who does is an administrator while no key is one's.
    """

    def __init__(self, path: Path, anonymous: bool, local: bool = False) -> None:
        self._store = KeyStore(path, TURN_SECONDS)
        self._limits = Limits(path.with_name(f"{path.name}-limits"))
        self._anonymous, self._local = anonymous, local
        self._keys: dict[bytes, Key] = {}
        self._has_admin = False
        self._edition: tuple[float, ...] | None = None
        self._looks = 0  # that have begun
        self._looking = asyncio.Lock()
        self._used: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self._keeping: asyncio.Task[None] | None = None
        self._clock = _clock()
        self._broken = ""  # why the store could not be read last,
        self._unwritten = ""  # and why not written

    async def start(self) -> None:
        await self._look()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        end = time.monotonic() + LAST_SECONDS
        while (error := await self._flush()) is not None and error.retry_after is not None:
            if time.monotonic() > end:
                break
        if error is not None:
            logger.error("%s; what keys were used for since it was written is lost", one_line(error.message))
        self._store.close()
        self._limits.close()

    async def who(self, texts: list[str], account: Callable[[], str]) -> Principal:
        """Who sends a request with these keys, of which one that is ours counts.

        Args:
            account: gives a name for the sender, should it have none of ours.

        Raises:
            CortexError: none of the keys holds, and one is needed, or a key of ours was revoked or has
                expired; STORE_UNAVAILABLE: nobody can tell.
        """
        ours = [text for text in texts if api_key.is_ours(text)]
        for text in ours:
            digest = api_key.digest(text)
            key = self._keys.get(digest) or await self._find(digest)
            if key is not None and (key.expires is None or key.expires > time.time()):
                return Principal(key.id, key, key.terms.priority, self._limits, self)
        if ours and self._broken and self._edition is None:
            raise CortexError(STORE_UNAVAILABLE, self._broken)
        if ours:
            raise CortexError(INVALID_KEY, "this API key is not known here, or holds no longer")
        if not self._anonymous:
            raise CortexError(INVALID_KEY, "this API key is none of this gateway's" if texts else NO_KEY)
        admin = self._local and not self._has_admin
        return Principal(account(), priority=LEFTOVERS if self._keys else None, admin=admin)

    def note(self, key_id: str, model: str, usage: Usage) -> None:
        """Add what one request came to; it is written within a second."""
        row = self._used[key_id, model, _day(int(time.time() // DAY))]
        row[0] += 1
        row[1] += usage.prompt_tokens
        row[2] += usage.cached_tokens
        row[3] += usage.completion_tokens

    async def every(self) -> list[Key]:
        """All keys that were made, as the store has them; CortexError where it cannot be read."""
        return await self._store.read(key_store.every) if await self._store.exists() else []

    async def used(self, since: str) -> list[UsageRow]:
        """What was used from that day on, such as 2026-11-27; CortexError where the store cannot be read."""
        await self._flush()
        return await self._store.read(key_store.usage, since) if await self._store.exists() else []

    async def _find(self, digest: bytes) -> Key | None:
        """A key that is not known: it may be a new one."""
        begun = self._looks
        async with self._looking:
            if self._looks == begun:  # else somebody's look, which began after this, was enough
                await self._look()
        return self._keys.get(digest)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._look_at_clock()
            try:
                async with self._looking:
                    await self._look()
                await self._flush()
            except Exception:  # or nobody would hear of a key that is revoked
                logger.exception("keys cannot be followed")

    def _look_at_clock(self) -> None:
        before, self._clock = self._clock, _clock()
        if abs(jump := self._clock - before) >= JUMP_SECONDS:
            text = (
                "the clock jumped by %+.0f s: keys expire by it, and limits by the minute and day begin anew"
            )
            logger.warning(text, jump)

    async def _look(self) -> None:
        """Read the keys where they have changed. Those that are known hold while the store cannot be read."""
        self._looks += 1
        try:
            if not await self._store.exists():
                if self._edition is not None:
                    logger.warning("the store of keys, %s, is gone, and all keys with it", self._store.path)
                self._keys, self._edition, self._has_admin = {}, None, False
            elif (edition := await self._store.read(key_store.edition)) != self._edition:
                keys = await self._store.read(key_store.every)
                self._keys = {key.digest: key for key in keys if key.revoked is None}
                self._has_admin = any(key.terms.admin for key in self._keys.values())
                self._edition = edition
        except CortexError as error:
            if self._edition is None:  # somebody may be an administrator
                self._has_admin = True
            if error.message != self._broken:
                hold = "the keys that are known hold" if self._edition is not None else "no key is known"
                logger.error("%s; %s", one_line(error.message), hold)
            self._broken = error.message
        else:
            if self._broken:
                logger.info("the store of keys is read again")
            self._broken = ""

    async def _flush(self) -> CortexError | None:
        """Write what was used; what cannot be written now is written later, and why is returned."""
        if not self._used:
            return None
        used, self._used = self._used, defaultdict(lambda: [0, 0, 0, 0])
        try:
            await self._store.write(
                key_store.use, [UsageRow(*which, *counts) for which, counts in used.items()]
            )
        except CortexError as error:
            for which, counts in used.items():
                row = self._used[which]
                for i, count in enumerate(counts):
                    row[i] += count
            if error.message != self._unwritten:
                logger.error("%s; what keys were used for is written later", one_line(error.message))
            self._unwritten = error.message
            return error
        if self._unwritten:
            logger.info("what keys were used for is written again")
        self._unwritten = ""
        return None


def _clock() -> float:
    """By how much the clock that people set is ahead of the one that nobody does; seconds."""
    return time.time() - time.monotonic()


@lru_cache(2)
def _day(number: int) -> str:
    """A day, by its number since 1970, as usage is kept: 2026-11-27."""
    return time.strftime("%Y-%m-%d", time.gmtime(number * DAY))


def has_keys(path: Path) -> bool:
    """Whether a key in the store at `path` holds, or may hold again when clocks are put right.

    Raises:
        CortexError: the store cannot be used.
    """
    store = KeyStore(path)

    async def look() -> bool:
        if not await store.exists():
            return False
        made, revoked, *_ = await store.read(key_store.edition)
        return made > revoked

    try:
        return asyncio.run(look())
    finally:
        store.close()
