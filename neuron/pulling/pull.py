"""A model whose files are not on this host: what is known of it, and how they come when it is asked for."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from math import inf

from ipc.errors import Code, CortexError
from ipc.messages.replies import Quoted
from ipc.messages.state import ModelState, ModelStatus
from neuron.admission.bounds import Bounds
from neuron.config import ModelSettings, NeuronConfig
from neuron.pulling.child import Came, Found, HubTask
from neuron.pulling.download import Download
from neuron.pulling.hub import ROOM
from neuron.requests.progress import LoadProgress

log = logging.getLogger("neuron.pulling.pull")

RETRY_SECONDS = 60.0  # after one that failed, until the next one
TURNED_AWAY_SECONDS = 10.0  # for whom the line is too long, where nobody knows how long the files take
KNOWN_SECONDS = 300.0  # that what the hub said of a model's size is taken for true
QUOTE_SECONDS = 1.0  # that a quote waits for the hub: gateways wait for three


@dataclass(slots=True)
class Shared:
    """What all pulls of a neuron have in common.

    Attributes:
        config: the neuron's.
        cache: where files go.
        memory: bytes of the devices that a model may use, in all.
        promised: bytes of the disk that all pulls will still take.
        arrived: gets to know a model whose files are here; raises what is wrong with them.
        changed: called when the `ModelState` of one is not what it was.
        rate: bytes a second that the last one came with; 0: not known.
    """

    config: NeuronConfig
    cache: Callable[[], str]
    memory: Callable[[ModelSettings], int]
    promised: Callable[[], int]
    arrived: Callable[[str], Awaitable[object]]
    changed: Callable[[], None]
    rate: float = 0.0


class Pull:
    """One model that is not here.

    One process asks the hub, and one downloads, whoever wants that and however many do; both outlive them.

    Args:
        settings: the user's, of a model that may be pulled.
        shared: what it has in common with others.
    """

    def __init__(self, settings: ModelSettings, shared: Shared) -> None:
        self.settings = settings
        self._shared = shared
        self._found: Found | None = None
        self._found_at = -inf
        self._came = 0
        self._began = 0.0
        self._error: CortexError | None = None  # of the last try, while none is made
        self._retry_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._progress = LoadProgress()
        queue = shared.config.queue
        self._waiting: Bounds[Callable[[LoadProgress], None]] = Bounds(
            queue.limit, queue.most_of_one_account, queue.wait_seconds
        )
        self._looking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None  # brings the files
        self._here: asyncio.Future[None] | None = None  # done when they are here, or cannot be had

    @property
    def is_busy(self) -> bool:
        """Whether its files come, or it is not to be tried again yet."""
        return self._here is not None or self._error is not None

    @property
    def to_come(self) -> int:
        """Bytes of the disk that it will still take."""
        return self._found.to_come - self._came if self._here is not None and self._found is not None else 0

    @property
    def _left(self) -> int:
        """Bytes that are to come, as others are told: 0 where that is not known."""
        return max(1, self._found.to_come - self._came) if self._found is not None else 0

    # --- bringing it ------------------------------------------------------------------------------------

    async def wait(self, account: str, tell: Callable[[LoadProgress], None]) -> None:
        """Return when its files are here, for which somebody has asked now. They go on coming when the caller
        does not wait for them.

        Args:
            account: who asks.
            tell: told how it goes.

        Raises:
            CortexError: they cannot be had, or too many wait already.
        """
        if self._error is not None:
            raise self._failed(self._error)
        waiter = partial(tell)  # one of its own for each
        try:
            self._waiting.enter(waiter, account)
        except CortexError as error:
            error.retry_after = self._progress.seconds_left or TURNED_AWAY_SECONDS
            raise
        try:
            if self._here is None:
                self._here = asyncio.get_running_loop().create_future()
                self._here.add_done_callback(asyncio.Future.exception)  # who waited has it, and may be gone
                self._task = asyncio.create_task(self._bring())
                self._say(f"asking the hub for {self._source}")
            else:
                tell(self._progress)
            await asyncio.shield(self._here)
        finally:
            self._waiting.leave(waiter)

    async def stop(self, why: str) -> None:
        """End what goes on; who waits is told why. One that failed may be tried again at once."""
        if self._retry is not None:
            self._retry.cancel()
            self._forgive()
        here = self._here
        for task in (self._task, self._looking):
            if task is not None and not task.done():
                task.cancel(why)
                await asyncio.wait([task])
        if here is not None and self._here is here:  # it had not even begun; another one may have, meanwhile
            self._settle(CortexError(Code.MODEL_LOAD_FAILED, why))

    async def _bring(self) -> None:
        error = None
        try:
            await self._download()
            self._say(f"{self._source} is here")
            await self._shared.arrived(self.settings.id)
        except CortexError as failure:
            error = failure
        except asyncio.CancelledError as cancelled:
            error = CortexError(Code.MODEL_LOAD_FAILED, str(cancelled) or "it was stopped")
        except Exception as failure:
            log.exception("pull failed unexpectedly model=%s", self.settings.id)
            error = CortexError(Code.INTERNAL, repr(failure))
        self._settle(error)

    async def _download(self) -> None:
        log.info("pull begins model=%s source=%s", self.settings.id, self._source)
        self._began, self._came = time.monotonic(), 0
        async with aclosing(self._ask(fetch=True)) as told:
            async for news in told:
                if isinstance(news, Found):
                    self._learn(news)
                    await self._check_promises()
                    self._began = time.monotonic()
                else:
                    self._on_came(news)
        seconds = time.monotonic() - self._began
        if self._found is not None and self._found.to_come:
            self._shared.rate = self._found.to_come / max(seconds, 1e-3)
            log.info(
                "pull is done model=%s bytes=%d seconds=%.1f", self.settings.id, self._found.to_come, seconds
            )

    async def _check_promises(self) -> None:
        """See that what is to come has room beside what others have found since: of two the later has none.

        Raises:
            CortexError: it has none.
        """
        free = (await asyncio.to_thread(shutil.disk_usage, self._shared.cache())).free
        if self.to_come and (over := self._shared.promised() + ROOM - free) > 0:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self._source}: {self.to_come >> 20:,} MiB are to come, and {self._shared.cache()} has "
                f"{over >> 20:,} too few for that and what else is being pulled",
            )

    def _on_came(self, news: Came) -> None:
        self._came = news.size
        if news.checking:
            of = f"{news.checked >> 20:,} MiB"
            self._say(f"comparing {news.checking} with its checksum, {of} so far")
            return
        whole = self._found.to_come
        text = f"pulling {self._source}, {news.size >> 20:,} of {whole >> 20:,} MiB"
        self._say(text, news.size / whole if whole else None)

    def _say(self, message: str, fraction: float | None = None) -> None:
        self._progress = self._progress.then(message, fraction, time.monotonic())
        self._shared.changed()
        for tell in list(self._waiting):
            tell(self._progress)

    def _settle(self, error: CortexError | None) -> None:
        here, self._here = self._here, None
        self._progress = LoadProgress()
        if error is None:
            here.set_result(None)
        else:
            log.warning("pull failed model=%s code=%s reason=%s", self.settings.id, error.code, error)
            self._fail(error)
            here.set_exception(self._failed(error))
        self._shared.changed()

    # --- what went wrong --------------------------------------------------------------------------------

    def _fail(self, error: CortexError) -> None:
        """Try it no more for a while."""
        self._error, self._retry_at, self._found_at = error, time.monotonic() + RETRY_SECONDS, -inf
        self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._forgive)

    def _forgive(self) -> None:
        self._error = self._retry = None
        self._shared.changed()

    def _failed(self, error: CortexError) -> CortexError:
        """Why a request cannot have the model, and what to do."""
        if error.code == Code.MODEL_TOO_LARGE:  # of which another try makes nothing
            return error
        wait = max(0.0, self._retry_at - time.monotonic())
        said = error.message.removeprefix(f"{self.settings.id}: ")  # which its repository may be, too
        again = f"it is tried again for who asks in {wait:.0f} s, or there by `neuron pull {self._source}`"
        return CortexError(
            Code.MODEL_LOAD_FAILED,
            f"{self.settings.id} cannot be pulled: {said}; {again}",
            retry_after=wait,
            details={"model": self.settings.id, "cause": error.code},
        )

    # --- telling of it ----------------------------------------------------------------------------------

    def state(self) -> ModelState:
        """What the neuron tells of it. What it can do nobody knows before its files are here."""
        status: ModelStatus = "unloaded"
        if self._here is not None:
            status = "loading"
        elif self._error is not None:
            status = "failed"
        settings = self.settings
        return ModelState(
            id=settings.id,
            status=status,
            completion=False,
            chat=False,
            pinned=settings.pin,
            priority=settings.priority,
            progress=self._progress.fraction,
            seconds_left=self._progress.seconds_left,
            error=self._error.message if self._error is not None else None,
            waiting=len(self._waiting),
            max_output=settings.max_output or 0,
            adapters=list(settings.adapters),
            bytes_to_pull=self._left,
        )

    async def quote(self, request_id: int) -> Quoted:
        """What a request for it would meet."""
        if not self.is_busy:
            await self._look()
        quoted = partial(Quoted, id=request_id, queue=len(self._waiting))
        if self._error is not None:
            error = self._failed(self._error)
            return quoted(verdict="refused", code=error.code, message=error.message)
        to_come = self._left
        if self._here is not None:
            return quoted(verdict="loading", seconds=self._progress.seconds_left, bytes_to_pull=to_come)
        rate = self._shared.rate
        return quoted(
            verdict="waits",
            seconds=to_come / rate if rate and to_come else None,
            message=f"its files are not here: {to_come >> 20:,} MiB are to come from the hub"
            if to_come
            else "its files are not here, and the hub has yet to say how large they are",
            bytes_to_pull=to_come,
        )

    async def _look(self) -> None:
        """See how much is to come, where that is not known; what takes longer the next one has."""
        if time.monotonic() - self._found_at < KNOWN_SECONDS:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._ask_size())
        await asyncio.wait([self._looking], timeout=QUOTE_SECONDS)

    async def _ask_size(self) -> None:
        try:
            async with aclosing(self._ask(fetch=False)) as told:
                async for news in told:
                    if self._here is None:  # else that one knows better by now
                        self._learn(news)
        except CortexError as error:
            if not self.is_busy:
                self._fail(error)
        except Exception:
            log.exception("hub could not be asked model=%s", self.settings.id)
        self._shared.changed()

    def _learn(self, found: Found) -> None:
        self._found, self._found_at, self._came = found, time.monotonic(), 0

    async def _ask(self, fetch: bool) -> AsyncGenerator[Found | Came, None]:
        task = HubTask(
            source=self._source,
            cache=self._shared.cache(),
            fetch=fetch,
            promised=self._shared.promised() - self.to_come,
            most_weights=self._most_weights(),
        )
        try:
            download = Download(task, self._shared.config.log_level)
        except OSError as error:
            raise CortexError(Code.MODEL_LOAD_FAILED, f"no process can be had: {error.strerror}") from error
        try:
            async with aclosing(download.news()) as told:
                async for news in told:
                    yield news
        finally:
            await download.end()

    def _most_weights(self) -> int | None:
        """Bytes that its weights may have in its files; None where they become others in memory."""
        kept = self.settings.quantization is None and self.settings.dtype is None
        return self._shared.memory(self.settings) if kept else None

    @property
    def _source(self) -> str:
        return self.settings.name_on_hub or self.settings.id
