"""The neuron's own file, read again while it runs: what it says of models counts at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from ipc.watched_file import LOOK_SECONDS, WatchedFile
from neuron.config import NeuronConfig, load

log = logging.getLogger("neuron.reload")

# What a running neuron can follow; the rest counts from its next start.
FOLLOWED = frozenset(("models", "model_folders", "hf_cache", "only_configured"))


class Reload:
    """Looks at the file each second, from now on until it is closed.

    Args:
        config: as it was read at the start.
        path: the file.
        apply: takes what it says now.
    """

    def __init__(
        self, config: NeuronConfig, path: str | Path, apply: Callable[[NeuronConfig], Awaitable[None]]
    ) -> None:
        self._started_with = config
        self._file = WatchedFile(path, load, config)
        self._apply = apply
        self._asked = asyncio.Event()
        self._following = asyncio.create_task(self._follow(), name="reload")

    def at_once(self) -> None:
        """Somebody wants the file to be read now, as it is."""
        self._asked.set()

    def close(self) -> None:
        """Look no more."""
        self._following.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass
            asked = self._asked.is_set()
            self._asked.clear()
            try:
                changed = await asyncio.to_thread(self._file.read if asked else self._file.look)
                if changed:
                    await self._take(self._file.value)
                if asked:
                    log.info("configuration read path=%s changed=%s", self._file.path, changed)
            except Exception:  # a later change may do better
                log.exception("configuration cannot be followed path=%s", self._file.path)

    async def _take(self, config: NeuronConfig) -> None:
        names = config.__struct_fields__
        later = [name for name in names if getattr(config, name) != getattr(self._started_with, name)]
        later = [name for name in later if name not in FOLLOWED]
        if later:
            log.warning("configuration counts from the next start keys=%s", ",".join(later))
        log.info("configuration changed path=%s models=%d", self._file.path, len(config.models))
        await self._apply(config)
