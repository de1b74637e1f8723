"""The catalogue as one process holds it: read again when it changes, and what each neuron makes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.catalogue import Catalogue, load
from gateway.config import GatewayConfig
from gateway.fleet.origin import origin_of
from gateway.telemetry import metrics_directory
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.replies import CatalogueReply
from ipc.messages.requests import SetCatalogue
from ipc.settings import ConfigError
from ipc.watched_file import LOOK_SECONDS, WatchedFile

logger = logging.getLogger("gateway.fleet.held_catalogue")

TELL_SECONDS = 60.0  # for a neuron, which may have to read many headers from a cold disk
AGAIN_SECONDS = 1.0  # after one that did not take it, and twice as long after each further time,
MOST_SECONDS = 60.0  # and at most so long
_UNREAD = re.compile(r"catalogue\.models\[(\d+)\]\.?(.*)")  # the field that a neuron cannot read
COPY = "catalogue"  # of the last good file, for processes that start while it is not


class HeldCatalogue:
    """What the file says, or said last.

    The processes of a gateway each read it. One that starts while the file cannot be used takes the copy that
    another one left.

    Raises:
        ConfigError: there is no such copy either: the gateway has just been started.
    """

    def __init__(self, path: Path, settings: GatewayConfig) -> None:
        read = partial(load, neurons=[each.name for each in settings.neurons], aliases=settings.aliases)
        self._origin = origin_of(path)
        self._copy = metrics_directory.beside(COPY + path.suffix)
        try:
            value = read(path)
        except ConfigError as error:
            if self._copy is None or not self._copy.exists():
                raise
            logger.error("catalogue cannot be used, and stays as it was reason=%s", error)
            value = read(self._copy)
        self._file: WatchedFile[Catalogue] = WatchedFile(path, read, value)
        level = logging.INFO if value.models else logging.WARNING  # an empty one may be a mistake
        logger.log(level, "catalogue path=%s version=%s models=%d", path, value.version, len(value.models))

    @property
    def value(self) -> Catalogue:
        return self._file.value

    @property
    def is_current(self) -> bool:
        """Whether the file is as it was when it was read."""
        return self._file.is_current

    def at(self, client: NeuronClient, neuron: str) -> CatalogueAtNeuron:
        """The catalogue as that neuron has it."""
        return CatalogueAtNeuron(client, neuron, lambda: self.value.of(neuron, self._origin), self)

    async def follow(self, on_read: Callable[[], None]) -> None:
        """Look at the file until this task is cancelled.

        Args:
            on_read: called when the file was read, to what end ever.
        """
        while True:
            try:
                await self._look(on_read)
            except Exception:  # a later change may do better
                logger.exception("catalogue cannot be followed path=%s", self._file.path)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, on_read: Callable[[], None]) -> None:
        before, was_current = self.value, self.is_current
        if await asyncio.to_thread(self._file.look):  # a large file takes long to read
            changes = difference(before, self.value)
            logger.info("catalogue changed path=%s added=%s removed=%s changed=%s", self._file.path, *changes)
        if was_current or not self.is_current:
            return
        if self._file.error is None and self._copy is not None:
            _copy(self._file.path, self._copy)
        on_read()

    def told(self) -> dict[str, Any]:
        """For `GET /health`."""
        error = self._file.error
        return {
            "path": str(self._file.path),
            "version": self.value.version,
            "models": len(self.value.models),
            "error": str(error) if error is not None else None,
        }


class CatalogueAtNeuron:
    """What one neuron makes of it.

    Attributes:
        reply: what it said last; None before that.
        error: why it could not be told.
    """

    def __init__(
        self, client: NeuronClient, name: str, said: Callable[[], FleetCatalogue], held: HeldCatalogue
    ) -> None:
        self.reply: CatalogueReply | None = None
        self.error: str | None = None
        self._client = client
        self._name = name
        self._said = said
        self._held = held
        self._last: FleetCatalogue | None = None  # that it was told
        self._waits = False  # to be told, until the file has been read
        self._again = False
        self._telling: asyncio.Task[None] | None = None
        self._seconds = AGAIN_SECONDS  # until it is told again, once it does not take it
        self._retry: asyncio.TimerHandle | None = None

    async def greet(self, within: float) -> None:
        """It answers, and may have begun anew: tell it, now or once the file has been read.

        Return when it has taken that, or has had `within` seconds for it.
        """
        self._seconds = AGAIN_SECONDS
        self._tell_once_read()
        if not self._waits:
            await asyncio.wait((self._telling,), timeout=within)

    def update(self) -> None:
        """The file has been read: tell it what it has not been told yet, where it has been there at all."""
        if self._waits or (self._last is not None and self._last != self._said()):
            self._waits = False
            self._tell_soon()

    def _tell_once_read(self) -> None:
        """While the file is newer than what we have of it, another process may have told it what is newer."""
        self._stop_retry()
        self._waits = not self._held.is_current
        if not self._waits:
            self._tell_soon()

    def _tell_soon(self) -> None:
        self._again = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name=f"catalogue to {self._name}")

    @property
    def is_passed_over(self) -> bool:
        """Whether the neuron goes by the catalogue of another gateway."""
        return self.reply is not None and self.reply.version != self._said().version

    def counts(self, version: str) -> None:
        """That catalogue counts there now: where it is another than the last time, ask whose it is."""
        if not version or self.reply is None or version == self.reply.version:
            return
        if self._retry is None and self._telling.done():  # else it is asked in any case
            self._tell_once_read()

    def close(self) -> None:
        self._stop_retry()
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        while self._again:
            self._again = False
            said = self._last = self._said()
            try:
                reply = await self._ask(said)
            except CortexError as error:  # one that is lost is told when it is back
                if error.message != self.error and self._client.alive:
                    logger.warning("catalogue not taken neuron=%s reason=%s", self._name, error)
                self.error = error.message
                if self._client.alive:
                    self._tell_again()
                continue
            if (reply.version, reply.own, reply.refused) != (self.reply and _facts(self.reply)):
                self._log(reply, said.version)
            self.reply, self.error = reply, None
            self._seconds = AGAIN_SECONDS
            self._stop_retry()

    async def _ask(self, said: FleetCatalogue) -> CatalogueReply:
        """What it makes of `said`, but for models of which it cannot read something, which an older one may
        not know: those are not its own, and all others are."""
        while True:
            try:
                return await self._client.ask(SetCatalogue(id=0, catalogue=said), TELL_SECONDS)
            except CortexError as error:
                unread = _UNREAD.fullmatch(error.param or "") if error.code == Code.BAD_REQUEST else None
                if unread is None or (number := int(unread[1])) >= len(said.models):
                    raise
                name = said.models[number].id
                others = f"neurons that take its {unread[2]} ({error.message})"
                said = replace(
                    said,
                    models=[model for model in said.models if model.id != name],
                    elsewhere=said.elsewhere | {name: [others]},
                )

    def _tell_again(self) -> None:
        """It did not take it: tell it after a while, longer after each failure."""
        self._stop_retry()
        self._retry = asyncio.get_running_loop().call_later(self._seconds, self._tell_once_read)
        self._seconds = min(2 * self._seconds, MOST_SECONDS)

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _log(self, reply: CatalogueReply, version: str) -> None:
        if reply.version != version:
            logger.warning(
                "catalogue of another gateway counts, whose file is newer neuron=%s origin=%s",
                self._name,
                reply.origin,
            )
            return
        logger.info("catalogue taken neuron=%s version=%s", self._name, version)
        for model, keys in reply.own.items():
            if keys:
                text = "neuron's own file counts neuron=%s model=%s differs=%s"
                logger.warning(text, self._name, model, ",".join(keys))
        for model, why in reply.refused.items():
            logger.info("model is not served there neuron=%s model=%s reason=%s", self._name, model, why)

    def told(self) -> dict[str, Any]:
        """For `GET /health`."""
        if self.reply is None:
            return {"error": self.error}
        version, own, refused = _facts(self.reply)
        return {
            "version": version,
            "origin": self.reply.origin,
            "own": own,
            "refused": refused,
            "error": self.error,
        }


def difference(before: Catalogue, after: Catalogue) -> list[str]:
    """The models that a change adds, removes and changes, each with commas between."""
    old, new = ({entry.id: entry for entry in each.models} for each in (before, after))
    changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    return [",".join(sorted(names)) for names in (new.keys() - old.keys(), old.keys() - new.keys(), changed)]


def _facts(reply: CatalogueReply) -> tuple[str, dict[str, list[str]], dict[str, str]]:
    return reply.version, reply.own, reply.refused


def _copy(path: Path, to: Path) -> None:
    """Leave a copy, with the time of the file. Without one, a process that starts needs a file in order."""
    whole = to.with_suffix(f".{os.getpid()}")
    try:
        shutil.copy2(path, whole)
        os.replace(whole, to)
    except OSError as error:
        logger.warning("catalogue cannot be copied to=%s reason=%s", to, error.strerror)
